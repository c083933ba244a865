"""Small models with a tokenizer: what `hearth quality` needs of a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.support.hf_models import ModelCase, build_model
from tests.unit.text import builders

VOCAB_SIZE = 408
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}
PROSE = "hello world, the quick brown fox jumps over the lazy dog. def f(x): return x + 1\n" * 40
Change = Callable[[Any], None]


def case(**sizes: Any) -> ModelCase:
    return ModelCase("quality", "llama", 5, {**SIZES, **sizes})


def save_text_model(path: Path, change: Change | None = None, **sizes: Any) -> Any:
    """A transformers model, `change`d, and the byte-level tokenizer; the model is returned."""
    model = build_model(case(**sizes))
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(path)
    builders.byte_level().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return model


def noisy(layer: int, name: str, scale: float, seed: int = 1) -> Change:
    """Noise of `scale` times the deviation of one matrix of a layer."""

    def change(model: Any) -> None:
        weight = model.model.layers[layer].get_submodule(name).weight
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(weight.shape, generator=generator)
        weight += scale * weight.std() * noise

    return change


def noisy_everywhere(scale: float) -> Change:
    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)

    return change
