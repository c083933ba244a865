"""Random models of architectures that have no family file, for the runner through transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.support.hf_models import Expected, ModelCase, expect
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hearth.core.config import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from hearth.engine.startup import StartedEngine, start

# Mixed: longer ones than a chunk and than a block among them; the first one also runs alone.
LENGTHS = (23, 1, 7, 31, 71)

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}

# What is unusual about each: norms after the branches and over all heads; learned positions, one
# matrix for q, k and v stored transposed; parallel branches and heads of q, k and v interleaved;
# windows, layers without positions, tied head.
OLMO2 = ModelCase("olmo2-4x2", "olmo2", 8, {**_SIZES, "num_key_value_heads": 2, "vocab_size": 199})
GPT2 = ModelCase(
    "gpt2-4x4", "gpt2", 4, {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 211}
)
GPT_NEOX = ModelCase("gpt-neox-4x4", "gpt_neox", 0, {**_SIZES, "vocab_size": 223})
COHERE2 = ModelCase(
    "cohere2-4x2-windows",
    "cohere2",
    0,
    {
        **_SIZES,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 227,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "logit_scale": 1.0,
    },
)
# Sinks and windows; keys wider than values. Both are mixtures of experts.
GPT_OSS = ModelCase(
    "gpt-oss-4x2-sinks",
    "gpt_oss",
    0,
    {
        **_SIZES,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 229,
        "sliding_window": 20,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
)
DEEPSEEK = ModelCase(
    "deepseek-v3-latent",
    "deepseek_v3",
    0,
    {
        **_SIZES,
        "num_key_value_heads": 4,
        "vocab_size": 233,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
)
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe")
CASES = (OLMO2, GPT2, GPT_NEOX, COHERE2, GPT_OSS, DEEPSEEK)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A configuration of a registered architecture, without special tokens."""
    common = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config_class: Any = CONFIG_MAPPING[model_type]
    config = config_class(max_position_embeddings=512, **common, **changes)
    config.eos_token_id = None
    return config


def build_fallback(case: ModelCase) -> Any:
    """The model with random weights: sharp attention, no weight at its neutral value."""
    torch.manual_seed(case.seed)
    config = tiny_config(case.family, **case.sizes)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                is_embedding = any(part in name for part in _EMBEDDINGS)
                tied = config.tie_word_embeddings and "wpe" not in name
                scale = 3.0 * parameter.shape[-1] ** -0.5
                parameter.normal_(0.0, (scale / 2 if tied else 0.3) if is_embedding else scale)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(1.0, 0.2)
    return model


def expect_fallback(case: ModelCase, path: Path) -> Expected:
    """Its checkpoint in `path`, and what transformers answers."""
    return expect(case, path, build=build_fallback, lengths=LENGTHS)


def start_engine(
    path: Path, *, budget: int = 64, caching: bool = True, **model: Any
) -> StartedEngine:
    """An engine as `hearth serve` starts it, with checks of its bookkeeping."""
    executor = model.pop("executor", "auto")
    memory_bytes = model.pop("memory_bytes", 64 << 20)
    config = EngineConfig(
        ModelConfig(str(path), **model),
        CacheConfig(16, caching, memory_bytes),
        SchedulerConfig(8, budget),
        DeviceConfig(1, executor),
        debug_checks=True,
    )
    return start(config, lambda *_: None)


def with_seed(case: ModelCase, seed: int) -> ModelCase:
    """The same with other weights."""
    return replace(case, seed=seed)
