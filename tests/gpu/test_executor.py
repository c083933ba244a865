"""The executor on a card: Triton's kernels against plain torch, graphs, batches, memory, sampling.

What docs/gpu-todo.md lists under "The executor" is shown here. Models are made of sizes alone, with
random weights; nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.contract.plan_builder import (  # noqa: E402
    Chunk,
    HowToSample,
    PlanBuilder,
    Track,
    generate,
)
from tests.gpu.models import glm4_program  # noqa: E402

from hearth.core.program import StepProgram  # noqa: E402
from hearth.core.spec import DType, QuantSpec, SlotKind  # noqa: E402
from hearth.core.step import KvConfig, StepLimits  # noqa: E402
from hearth.kernels.reference.sampling import sample_rows  # noqa: E402
from hearth.kernels.triton.executor import DeviceChoice, TritonExecutor  # noqa: E402
from hearth.kernels.triton.kernels import Kernels, plain_kernels, triton_kernels  # noqa: E402
from hearth.kernels.triton.kv_layout import device_block_bytes  # noqa: E402
from hearth.kernels.triton.memory import GRAPH_BYTES, scratch_bytes  # noqa: E402
from hearth.kernels.triton.weights import TritonWeights  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
BLOCK_SIZE, NUM_BLOCKS = 32, 512
LIMITS = StepLimits(512, 32, 96, 4096)
QUANTS = {
    "dense": QuantSpec(DType.BFLOAT16),
    "int4": QuantSpec(DType.BFLOAT16, bits=4, group_size=128),
    "fp8": QuantSpec(DType.BFLOAT16, bits=8, group_size=128, is_float=True),
}
PROMPTS = [list(range(5, 5 + n)) for n in (300, 1, 64, 33, 128, 7, 90, 17)]


@dataclass(frozen=True)
class Built:
    executor: TritonExecutor
    program: StepProgram


def build(
    quant: str = "dense", kernels: Kernels | None = None, *, graphs: bool = True, seed: int = 1
) -> Built:
    is_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    dtype = DType.BFLOAT16 if is_bfloat16 else DType.FLOAT16
    program = with_quant(glm4_program(num_layers=3), QUANTS[quant])
    device = torch.device("cuda")
    weights = TritonWeights(program, dtype, device)
    for number, slot in enumerate(program.slots):
        weights.fill_random(slot, seed + number)
    kv = KvConfig(BLOCK_SIZE, (NUM_BLOCKS,), dtype.value)
    choice = DeviceChoice(device, kernels or triton_kernels(), "a test", graphs)
    return Built(TritonExecutor(program, weights, LIMITS, kv, choice), program)


def with_quant(program: StepProgram, quant: QuantSpec) -> StepProgram:
    """The matrices stored by `quant`, but for the table."""
    slots = tuple(
        replace(slot, quant=quant) if slot.kind is SlotKind.LINEAR else slot
        for slot in program.slots
    )
    return replace(program, slots=slots)


def builder() -> PlanBuilder:
    return PlanBuilder(BLOCK_SIZE, NUM_BLOCKS)


@pytest.mark.parametrize("quant", QUANTS)
def test_tritons_kernels_equal_plain_torch_but_for_rounding(quant: str) -> None:
    results = []
    for kernels in (triton_kernels(), plain_kernels()):
        executor, b = build(quant, kernels, graphs=False).executor, builder()
        tracks = [Track(list(p)) for p in PROMPTS[:4]]
        rows = [(len(t.tokens) - 1,) for t in tracks]
        chunks = [Chunk(t, len(t.tokens), wanted) for t, wanted in zip(tracks, rows)]
        results.append(executor.execute(b.plan(chunks)).logits)
        executor.close()
    own, plain = results
    assert own is not None
    assert plain is not None
    spread = float(plain.std())
    assert np.abs(own - plain).max() < 0.1 * spread
    assert np.sqrt(((own - plain) ** 2).mean()) < 0.02 * spread


@pytest.mark.parametrize("quant", QUANTS)
def test_answers_are_the_same_alone_in_a_batch_in_chunks_and_from_graphs(quant: str) -> None:
    """The rule of docs/architecture.md, on the card: bit-identical tokens, whatever is beside."""
    eager = build(quant, graphs=False).executor
    alone = [generate(eager, builder(), [p], 12, 512)[0] for p in PROMPTS]
    assert generate(eager, builder(), PROMPTS, 12, 64) == alone
    eager.close()
    with_graphs = build(quant).executor
    assert generate(with_graphs, builder(), PROMPTS, 12, 512) == alone
    assert with_graphs.graphs.counts["graph"] > 0
    assert not any("failed" in reason for reason in with_graphs.graphs.counts)
    with_graphs.close()


def test_logits_of_a_row_have_the_same_bits_in_steps_of_any_size() -> None:
    executor = build(graphs=False).executor
    rows = []
    for company in (0, 1, 3, 7):
        b = builder()
        tracks = [Track(list(p)) for p in PROMPTS[: company + 1]]
        chunks = [Chunk(t, len(t.tokens), (len(t.tokens) - 1,)) for t in tracks[:1]]
        chunks += [Chunk(t, min(20, len(t.tokens)), ()) for t in tracks[1:]]
        logits = executor.execute(b.plan(chunks)).logits
        assert logits is not None
        rows.append(logits[0])
    assert all(np.array_equal(rows[0], row) for row in rows[1:])
    executor.close()


def test_what_is_allocated_is_what_was_planned() -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    built = build()
    generate(built.executor, builder(), PROMPTS, 8, 512)
    peak = torch.cuda.max_memory_allocated() - before
    dtype = DType.BFLOAT16
    weights = built.executor._bound._weights.num_bytes  # type: ignore[union-attr]  # not closed
    kv = NUM_BLOCKS * device_block_bytes(built.program.kv_groups[0], BLOCK_SIZE, "bfloat16")  # type: ignore[arg-type]  # the name
    scratch = scratch_bytes(built.program, LIMITS, dtype, BLOCK_SIZE)
    planned = weights + kv + scratch + GRAPH_BYTES
    print(f"planned {planned:,}, of it scratch {scratch:,}; peak {peak:,}")
    assert peak <= planned
    built.executor.close()


@pytest.mark.parametrize("filters", [False, True], ids=["without a sort", "sorted"])
def test_draws_are_those_of_the_definition_for_the_logits_at_hand(*, filters: bool) -> None:
    executor = build(graphs=False).executor
    kinds = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.3, 0, 1.0, 0.0), (1.5, 0, 1.0, 0.0)]
    if filters:
        kinds[2:] = [(0.7, 50, 0.9, 0.0), (1.5, 0, 0.95, 0.02)]
    how = [HowToSample(*kind, seed) for seed, kind in enumerate(kinds)]
    plan = builder().plan([Chunk(Track(PROMPTS[0]), 300, (10, 50, 100, 299))], how)
    result = executor.execute(plan)
    assert result.logits is not None
    expected = sample_rows(result.logits, plan.sampling)
    assert result.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(result.logprobs, expected.logprobs, atol=1e-5)
    executor.close()


def test_a_step_waits_for_the_device_once() -> None:
    """Counted by torch, which warns of every synchronization; graphs are captured before."""
    executor = build().executor
    generate(executor, builder(), PROMPTS, 4, 512)
    b = builder()
    tracks = [Track(list(p)) for p in PROMPTS]
    executor.execute(b.plan([Chunk(t, len(t.tokens), (len(t.tokens) - 1,)) for t in tracks[:1]]))
    tracks[0].tokens.append(3)
    plan = replace(b.plan([Chunk(tracks[0], 1, (0,))]), want_logits=False)
    executor.execute(plan)
    torch.cuda.set_sync_debug_mode("error")  # of torch's own, not of the stream's wait at the end
    try:
        result = executor.execute(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result.tokens) == 1
    executor.close()
