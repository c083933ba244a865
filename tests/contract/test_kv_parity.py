"""Keys and values as codes: the kernels against plain torch that stores by the same rule.

First attention alone, whose keys and values are the same bits in both, so that codes are the same
too. Then whole models: there a value within float32's error of the middle of two codes may go
either way, one step of one code, and what both lose is held against what parts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, PlanBuilder, Track, teacher_forced
from tests.support.executors import Setup, build_executor, require_cpu_library
from tests.support.hf_models import CASES, Expected, ModelCase
from tests.unit.kernels.programs import ISAS, Bench, Heads, attention_program, build, host_tensor

from hearth.core.program import BufferRows, BufferSpec, Sample, Select, StepProgram
from hearth.core.spec import KvDType
from hearth.core.step import Executor, KvConfig, StepLimits
from hearth.kernels.reference.executor import ReferenceExecutor
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import load_model_spec

CODED = [KvDType.INT8, KvDType.FP8, KvDType.INT4]
LENGTH = 150


def sampled(program: StepProgram) -> StepProgram:
    """A program whose logits are the rows of buffer 1."""
    logits = BufferSpec("logits", program.buffers[1].width, BufferRows.LOGITS)
    ops = (*program.ops, Select(1, 2), Sample(2))
    return replace(program, buffers=(*program.buffers, logits), ops=ops)


def rows_of(executor: Executor, tokens: list[int]) -> NDArray[np.float32]:
    """The logits of all positions, computed in chunks, the last one in a copy of its block."""
    builder, track, found = PlanBuilder(16, 64), Track(tokens), []
    for size in (70, 1, 60, len(tokens) - 132):
        result = executor.execute(builder.plan([Chunk(track, size, tuple(range(size)))]))
        assert result.logits is not None
        found.append(result.logits)
    source, copy = track.blocks[-1], builder.free.pop()
    track.blocks[-1] = copy
    plan = builder.plan([Chunk(track, 1, (0,))], copies=[(source, copy)])
    logits = executor.execute(plan).logits
    executor.close()
    assert logits is not None
    return np.concatenate([*found, logits])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
@pytest.mark.parametrize("heads", [Heads(4, 2, 24), Heads(2, 1, 128, window=40), Heads(3, 1, 96)])
def test_attention_over_the_same_codes_is_the_same(
    isa: str, dtype: KvDType, rounded: bool, heads: Heads
) -> None:
    heads = replace(heads, rounded=rounded)
    num_rows = heads.num_heads * heads.head_dim  # of the table: a logit for each
    program = sampled(attention_program(num_rows, heads))
    random = np.random.default_rng(5)
    table = random.normal(0, 1, (num_rows, program.buffers[0].width)).astype(np.float32)
    tokens = random.integers(0, num_rows, LENGTH).tolist()
    bench = Bench(2, isa, max_tokens=LENGTH, kv_dtype=dtype)
    kernels = rows_of(build(program, {"table": table}, bench), tokens)
    weights = ReferenceWeights(program)
    weights.put(program.slots[0], 0, host_tensor(table))
    limits, kv = StepLimits(LENGTH, 4, LENGTH, 4096), KvConfig(16, (64,), dtype)
    plain = rows_of(ReferenceExecutor(program, weights, limits, kv), tokens)
    errors = np.abs(kernels - plain)
    # A weight in the middle between two values of bfloat16 may be rounded to either.
    assert np.quantile(errors, 0.99 if rounded else 1) < (1e-3 if rounded else 1e-5)
    assert errors.max() < 2**-7


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 4)], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", CODED)
def test_whole_models_agree_far_beyond_what_the_codes_lose(
    expected_of: Callable[[ModelCase], Expected], case: ModelCase, dtype: KvDType
) -> None:
    require_cpu_library()
    expected = expected_of(case)
    loaded = load_model_spec(expected.path, "float32")
    setup = Setup(loaded, max_tokens=64, kv_dtype=dtype)
    sequences = [expected.sequence(i) for i in range(len(expected.prompts))]
    found = {}
    for name in ("cpu", "reference"):
        builder = PlanBuilder(16, setup.num_blocks, num_groups=len(loaded.program.kv_groups))
        found[name] = teacher_forced(build_executor(name, setup), builder, sequences, 64)
    parted = np.abs(np.concatenate(found["cpu"]) - np.concatenate(found["reference"]))
    lost = np.abs(np.concatenate(found["cpu"]) - np.concatenate(expected.logits))
    print(f"{case.name} {dtype}: parted {parted.mean():.1e}, lost {lost.mean():.1e}")
    assert lost.mean() > 1e-5, "nothing was rounded"
    assert parted.mean() < lost.mean() / 20
