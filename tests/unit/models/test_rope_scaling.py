"""Every kind of RoPE scaling gives the frequencies and the attention factor of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.models.checkpoints import LLAMA, write_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hearth.models.loader import load_model_spec

HEAD_DIM = 32
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 512,
}
HALF = HEAD_DIM // 2
SECTIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.7},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 0.707,
        "mscale_all_dim": 1.1,
        "beta_fast": 20,
        "beta_slow": 2,
        "truncate": False,
        "original_max_position_embeddings": 256,
    },
    "yarn-attention": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 100,
        "short_factor": [1.0 + i / 50 for i in range(HALF)],
        "long_factor": [1.0 + i for i in range(HALF)],
    },
    "longrope-factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "factor": 32.0,
        "short_factor": [1] * HALF,
        "long_factor": [2] * HALF,
    },
}


def expected(section: dict[str, Any], served: int) -> tuple[torch.Tensor, float]:
    """What transformers computes for one sequence of `served` tokens."""
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 50000.0, **section})
    compute: Any = ROPE_INIT_FUNCTIONS[section["rope_type"]]
    frequencies, factor = compute(config, "cpu", seq_len=served)
    return frequencies, float(factor)


@pytest.mark.parametrize("served", [64, 101, 512, 1000])
@pytest.mark.parametrize("name", SECTIONS)
def test_frequencies_are_those_of_transformers_for_a_sequence_of_the_served_length(
    tmp_path: Path, name: str, served: int
) -> None:
    section = SECTIONS[name]
    write_config(tmp_path, LLAMA, **SIZES, rope_theta=50000.0, rope_scaling=section)
    rope = load_model_spec(tmp_path, max_model_len=served).spec.rope
    frequencies, factor = expected(section, served)
    torch.testing.assert_close(torch.tensor(rope.inv_freq), frequencies, rtol=5e-7, atol=0)
    assert rope.attention_scaling == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", SECTIONS)
def test_both_spellings_and_a_later_length_are_the_same(tmp_path: Path, name: str) -> None:
    section = dict(SECTIONS[name])
    write_config(tmp_path, LLAMA, **SIZES, rope_parameters={"rope_theta": 5e4, **section})
    new = load_model_spec(tmp_path, max_model_len=300)
    old_section = {"type": section.pop("rope_type"), **section}
    original = old_section.pop("original_max_position_embeddings", ...)
    write_config(
        tmp_path,
        LLAMA,
        **SIZES,
        rope_theta=5e4,
        rope_scaling=old_section,
        original_max_position_embeddings=original,
    )
    old = load_model_spec(tmp_path)
    assert old.at_length(300).spec == new.spec
    assert old.at_length(300).program.digest() == new.program.digest()


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("linear", int(3.7 * 512)),
        ("dynamic", 2048),
        ("yarn", 512),
        ("yarn-mscale", 10240),
        ("yarn-attention", 1024),
        ("llama3", 512),
        ("longrope", 512),
    ],
)
def test_the_context_is_what_the_scaling_leads_to(tmp_path: Path, name: str, length: int) -> None:
    write_config(tmp_path, LLAMA, **SIZES, rope_scaling=SECTIONS[name])
    assert load_model_spec(tmp_path).spec.max_position_embeddings == length


def test_dynamic_scaling_leaves_lengths_within_the_original_context_alone(tmp_path: Path) -> None:
    write_config(tmp_path, LLAMA, **SIZES, rope_scaling=SECTIONS["dynamic"])
    loaded = load_model_spec(tmp_path)
    write_config(tmp_path, LLAMA, **SIZES)
    plain = load_model_spec(tmp_path).spec.rope
    assert loaded.at_length(512).spec.rope == plain
    slowest = loaded.spec.rope.inv_freq[-1] / plain.inv_freq[-1]
    assert slowest == pytest.approx(1 / 13, rel=1e-5)  # 4 · 4 − 3, as its exponent cancels there
    assert math.isclose(loaded.spec.rope.inv_freq[0], 1.0)
