"""The shape of the Debian model, and its directory as a server loads it.

Llama-shaped, 28.3 million parameters. All widths are multiples of 128, so that a quantized row is
whole groups of any permitted size and no scheme is at an advantage by its remainders.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from tools.debian_model.tokenizer import END_ID, MAX_CONTEXT_TOKENS, VOCABULARY_SIZE
from transformers import LlamaConfig, LlamaForCausalLM


def model_config(num_layers: int) -> LlamaConfig:
    """Its configuration."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        initializer_range=0.02,
    )


def save(model: LlamaForCausalLM, tokenizer: Path, directory: Path) -> None:
    """Writes the directory in bfloat16; half of one never lies there. Raises OSError."""
    draft = directory.with_name(directory.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    stored = copy.deepcopy(model).bfloat16()
    generation = stored.generation_config
    assert generation is not None
    generation.do_sample, generation.temperature, generation.top_p = True, 0.8, 0.9
    stored.save_pretrained(draft)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, draft / name)
    shutil.rmtree(directory, ignore_errors=True)
    draft.rename(directory)
