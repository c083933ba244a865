"""Fused or not, split or not: every bit is the same; and which operations are fused, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track
from tests.unit.kernels.programs import ISAS

from hearth.core.config import CodesConfig
from hearth.core.errors import KernelError
from hearth.core.program import Add, Quantize
from hearth.core.step import KvConfig, StepLimits
from hearth.kernels.cpu.executor import CpuExecutor, Split, Tiling
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.fuse import ALL_PATTERNS, Fusion, Group, Pattern, fuse
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

VOCABULARY = 97
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "glm4": {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "attention_bias": True},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "query_pre_attn_scalar": 4,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "sliding_window": 33,
    },
    "glm4_moe": {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "moe_intermediate_size": 64,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
    },
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of two layers."""

    family: str = "llama"
    hidden: int = 128
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    quantize: str = "none"
    dtype: str = "float32"
    activations: str = "auto"


@lru_cache(maxsize=8)
def model_of(shape: Shape) -> tuple[LoadedSpec, CpuWeights]:
    config = {
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        **FAMILIES[shape.family],
    }
    with TemporaryDirectory() as path:
        (Path(path) / "config.json").write_text(json.dumps(config))
        codes = CodesConfig(shape.activations)
        loaded = load_model_spec(Path(path), shape.dtype, quantize=shape.quantize, codes=codes)
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights, "dummy", seed=3)
    if shape.activations == "int8-residual":  # an outlier, so that some groups keep them
        for layer in loaded.spec.layers:
            norm = loaded.program.slot(layer.mlp_norm.weight)
            weights.packed(norm).view(np.float32)[3] *= 100
    return loaded, weights


def executor_of(
    shape: Shape,
    patterns: frozenset[Pattern] = ALL_PATTERNS,
    *,
    threads: int = 1,
    isa: str = "auto",
    split: Split = "auto",
) -> CpuExecutor:
    loaded, weights = model_of(shape)
    limits = StepLimits(512, 8, 512, 4096)
    kv = KvConfig(16, (300,) * len(loaded.program.kv_groups), loaded.dtype)
    return CpuExecutor(loaded.program, weights, limits, kv, threads, isa, Tiling(patterns, split))


def run(executor: CpuExecutor, steps: list[list[int]]) -> NDArray[np.float32]:
    """Logits of every row of some steps; each names the tokens that every sequence gets."""
    builder = PlanBuilder(16, 300, num_groups=len(executor.program.kv_groups))
    random = np.random.default_rng(8)
    tracks = [Track([]) for _ in steps[0]]
    rows = []
    for counts in steps:
        chunks = []
        for track, count in zip(tracks, counts):
            track.tokens += random.integers(0, VOCABULARY, count).tolist()
            if count:
                chunks.append(Chunk(track, count, tuple(range(count))))
        logits = executor.execute(builder.plan(chunks)).logits
        assert logits is not None
        rows.append(logits)
    executor.close()
    return np.concatenate(rows)


def assert_same_bits(first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
    assert np.isfinite(first).all()
    assert np.array_equal(first.view(np.uint32), second.view(np.uint32))


SHAPES = st.builds(
    Shape,
    family=st.sampled_from(sorted(FAMILIES)),
    hidden=st.sampled_from((64, 100, 128, 200, 256)),
    intermediate=st.sampled_from((64, 100, 128, 192, 256, 320)),
    heads=st.sampled_from((2, 4, 6)),
    kv_heads=st.sampled_from((1, 2)),
    head_dim=st.sampled_from((16, 24, 32, 64, 80, 128)),
    quantize=st.sampled_from(("none", "int4", "int8")),
    dtype=st.sampled_from(("float32", "bfloat16")),
    activations=st.sampled_from(("auto", "int8-residual")),
)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=20, deadline=None)
@given(
    shape=SHAPES,
    counts=st.lists(st.integers(1, 33), min_size=1, max_size=3),
    patterns=st.one_of(st.just(ALL_PATTERNS), st.frozensets(st.sampled_from(Pattern), min_size=1)),
    threads=st.integers(1, 3),
)
def test_fused_operations_give_the_bits_of_plain_ones(
    isa: str, shape: Shape, counts: list[int], patterns: frozenset[Pattern], threads: int
) -> None:
    steps = [counts, [1] * len(counts), counts[::-1]]
    plain = run(executor_of(shape, frozenset(), isa=isa), steps)
    assert_same_bits(plain, run(executor_of(shape, patterns, threads=threads, isa=isa), steps))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_attention_that_is_split_gives_the_bits_of_one_thread(family: str, quantize: str) -> None:
    shape = Shape(family, heads=6, quantize=quantize, head_dim=32, dtype="bfloat16")
    steps = [[500, 0, 1]] * 3 + [[1, 60, 1], [3, 1, 9], [17, 1, 0], [1, 1, 1]]
    plain = run(executor_of(shape, frozenset(), split="never"), steps)
    ways: list[tuple[int, Split]] = [
        (1, "always"),
        (2, "auto"),
        (3, "always"),
        (7, "auto"),
        (7, "always"),
    ]
    for threads, split in ways:
        assert_same_bits(plain, run(executor_of(shape, threads=threads, split=split), steps))
        assert_same_bits(
            plain, run(executor_of(shape, frozenset(), threads=threads, split=split), steps)
        )


def fusion_of(shape: Shape, threads: int = 2) -> tuple[LoadedSpec, Fusion]:
    loaded, _ = model_of(shape)
    return loaded, fuse(loaded.program, threads)


def names_of(shape: Shape, threads: int = 2) -> list[str]:
    """Operations as they run: fused ones joined by `+`."""
    loaded, fusion = fusion_of(shape, threads)
    ops = [type(op).__name__ for op in loaded.program.ops]
    names, at = [], 0
    groups = {group.first: group.count for group in fusion.groups}
    while at < len(ops):
        count = groups.get(at, 1)
        names.append("+".join(ops[at : at + count]))
        at += count
    return names


WIDE = Shape(hidden=256, intermediate=512, heads=8, kv_heads=2, head_dim=64, quantize="int4")


def test_a_quantized_llama_layer_runs_in_seven_stages() -> None:
    keys = "Linear+Rope+KvWrite"
    rest = [
        "Attend+Quantize",
        "Linear+Add",
        "Norm+Quantize",
        "Linear+Gate+Quantize",
        "Linear+Add",
        "Norm+Quantize",
    ]
    assert names_of(WIDE)[:9] == ["Embed+Angles+Norm+Quantize", keys, *rest, keys]
    assert names_of(WIDE)[-10:] == [keys, "Select+Select", *rest, "Linear", "Sample"]


def test_a_norm_before_the_sum_keeps_the_residual_apart() -> None:
    names = names_of(replace(WIDE, family="glm4"))
    assert "Linear+Add" not in names
    assert "Norm+Add+Norm+Quantize" in names


def test_buffers_that_stay_within_tiles_need_no_memory() -> None:
    loaded, fusion = fusion_of(WIDE)
    names = {loaded.program.buffers[i].name for i in fusion.tile_buffers}
    assert names == {"branch", "attention", "gate_up", "gated"}


@pytest.mark.parametrize(
    ("shape", "threads", "pattern", "reason"),
    [
        (replace(WIDE, intermediate=200), 2, Pattern.GATED, "200 is no multiple of 64"),
        (replace(WIDE, intermediate=384), 16, Pattern.GATED, "3 tiles of 4 panels are few"),
        (replace(WIDE, head_dim=80), 16, Pattern.HEADS, "3 tiles of 5 panels are few"),
        (replace(WIDE, head_dim=24), 2, Pattern.ATTENTION, "the 96 columns of a kv head"),
    ],
)
def test_what_is_not_fused_has_its_reason(
    shape: Shape, threads: int, pattern: Pattern, reason: str
) -> None:
    _, fusion = fusion_of(shape, threads)
    refusals = [refusal for refusal in fusion.refused if refusal.pattern is pattern]
    assert len(refusals) == 2  # one a layer
    assert reason in refusals[0].reason
    firsts = {group.first for group in fusion.groups if group.pattern is pattern}
    assert not firsts & {refusal.first for refusal in refusals}


def test_codes_are_not_written_where_other_tiles_read_them() -> None:
    shape = replace(WIDE, intermediate=256)  # the rows of gate_up and of down share a buffer
    loaded, fusion = fusion_of(shape)
    assert [r.reason for r in fusion.refused] == [
        "the result goes to what other tiles still read"
    ] * 2
    quantized = {op.out for op in loaded.program.ops if isinstance(op, Quantize)}
    assert not quantized & fusion.tile_buffers


def test_a_buffer_that_is_read_again_is_written() -> None:
    program = model_of(WIDE)[0].program
    at = next(i for i, op in enumerate(program.ops) if isinstance(op, Add))
    again = program.ops[at]
    assert isinstance(again, Add)
    fusion = fuse(replace(program, ops=(*program.ops[: at + 1], again, *program.ops[at + 1 :])), 2)
    assert [r.reason for r in fusion.refused] == ["Add reads branch later"]
    assert again.y not in fusion.tile_buffers


@pytest.mark.parametrize(
    ("first", "count", "message"),
    [
        (3, 2, "other rows"),  # Quantize, Linear
        (4, 2, "query, key and value"),  # Linear, Rope
        (7, 3, "attention and its codes"),  # Attend, Quantize, Linear
        (9, 3, "a linear layer and its sum"),  # Linear, Add, Norm
        (13, 4, "an activation and its codes"),  # Linear, Gate, Quantize, Linear
        (30, 99, "more operations are fused than there are"),
    ],
)
def test_a_group_that_would_race_is_refused_by_the_library(
    monkeypatch: pytest.MonkeyPatch, first: int, count: int, message: str
) -> None:
    wrong = Fusion((Group(first, count, Pattern.ROWS),))  # the library knows no names
    monkeypatch.setattr("hearth.kernels.cpu.executor.fuse", lambda *_: wrong)
    with pytest.raises(KernelError, match=message):
        executor_of(WIDE)


def test_a_buffer_without_memory_is_refused_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "hearth.kernels.cpu.executor.fuse", lambda *_: Fusion(tile_buffers=frozenset({0}))
    )
    with pytest.raises(KernelError, match="without memory"):
        executor_of(WIDE)


def test_executors_end_whatever_their_threads_are_doing() -> None:
    num_before = len(list(Path("/proc/self/task").iterdir()))
    for number in range(60):
        executor = executor_of(WIDE, threads=2 + number % 3)
        if number % 3:
            run(executor, [[1]] * (number % 3))  # closes it
        executor.close()
    assert len(list(Path("/proc/self/task").iterdir())) <= num_before
