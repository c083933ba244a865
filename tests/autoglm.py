"""The public configuration of AutoGLM-Phone-9B, written into a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "model_type": "glm4v_text",
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-05,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338, 151348],
    "dtype": "bfloat16",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    },
}
VISION: dict[str, Any] = {
    "model_type": "glm4v",
    "depth": 24,
    "hidden_size": 1536,
    "hidden_act": "silu",
    "attention_bias": False,
    "num_heads": 12,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 4096,
    "intermediate_size": 13696,
}
CONFIG: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "model_type": "glm4v",
    "image_token_id": 151343,
    "image_start_token_id": 151339,
    "image_end_token_id": 151340,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": TEXT,
    "vision_config": VISION,
}


def write_autoglm(directory: Path) -> Path:
    """config.json alone: no weights, no tokenizer."""
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return directory
