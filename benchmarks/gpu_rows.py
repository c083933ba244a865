"""What is measured on a card: its ceilings, then steps of a 9B model against them, in one process.

The shapes are those of AutoGLM-Phone-9B's text part, weights are random (never zero). Every row has
its limit beside it: bytes a step reads over the measured copy rate, or operations over the measured
rate of products. Medians of at least five; compiling and capturing are left out, and reported by
themselves.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("", "src")]

from tests.contract.plan_builder import Chunk, PlanBuilder, Track  # noqa: E402
from tests.gpu.models import GLM4_9B, glm4_program  # noqa: E402

from hearth.core.program import StepProgram  # noqa: E402
from hearth.core.spec import DType, QuantSpec, SlotKind  # noqa: E402
from hearth.core.step import KvConfig, StepLimits  # noqa: E402
from hearth.core.units import GIB, ceil_div  # noqa: E402
from hearth.kernels.triton.executor import DeviceChoice, TritonExecutor  # noqa: E402
from hearth.kernels.triton.kernels import triton_kernels  # noqa: E402
from hearth.kernels.triton.memory import weight_bytes  # noqa: E402
from hearth.kernels.triton.weights import TritonWeights  # noqa: E402

BLOCK_SIZE = 32
NUM_LAYERS = 40
REPEATS = 7
CODES = {
    "int4 g128": QuantSpec(DType.BFLOAT16, bits=4, group_size=128),
    "fp8": QuantSpec(DType.BFLOAT16, bits=8, group_size=128, is_float=True),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; `limit`: what the card's measured ceilings allow, in the same unit."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    spread: float = 0.0  # of the repeats, largest less smallest

    @property
    def share(self) -> float | None:
        """Of the limit; for times, limit / value."""
        if self.limit is None:
            return None
        return self.limit / self.value if self.unit == "ms" else self.value / self.limit


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured rates of the card."""

    copy_bytes_s: float
    products_s: float


def timed(run: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median seconds and spread, waiting for the device; one run before that is not counted."""
    run()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), max(seconds) - min(seconds)


def measure_ceilings() -> Ceilings:
    """Copies of 2 GiB within the card, and products of 8192² in the model's float type."""
    copy = _copy_bytes_s()
    is_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    dtype = torch.bfloat16 if is_bfloat16 else torch.float16
    a = torch.randn(8192, 8192, dtype=dtype, device="cuda")
    seconds, _ = timed(lambda: [torch.mm(a, a) for _ in range(4)])
    return Ceilings(copy, 4 * 2 * 8192**3 / seconds)


def _copy_bytes_s() -> float:
    source = torch.ones(GIB, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    seconds, _ = timed(lambda: target.copy_(source))
    return 2 * source.nbytes / seconds


def model_program(form: str) -> StepProgram:
    """9B of the given storage of its layers; table and head stay dense."""
    program = glm4_program(NUM_LAYERS, GLM4_9B)
    if form == "dense":
        return program
    head = next(op.weight for op in reversed(program.ops) if hasattr(op, "weight"))
    slots = tuple(
        replace(slot, quant=CODES[form])
        if slot.kind is SlotKind.LINEAR and slot.name != head
        else slot
        for slot in program.slots
    )
    return replace(program, slots=slots)


class Model:
    """An executor of 9B with random weights, and what its steps read and compute."""

    def __init__(self, form: str, max_tokens: int, max_sequences: int, num_tokens: int) -> None:
        self.program = model_program(form)
        is_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
        self.dtype = DType.BFLOAT16 if is_bfloat16 else DType.FLOAT16
        device = torch.device("cuda")
        started = time.perf_counter()
        weights = TritonWeights(self.program, self.dtype, device)
        for number, slot in enumerate(self.program.slots):
            weights.fill_random(slot, number + 1)
        weights.finish()
        self.fill_s = time.perf_counter() - started
        limits = StepLimits(max_tokens, max_sequences, max(1, max_sequences), 32768)
        self.num_blocks = ceil_div(num_tokens, BLOCK_SIZE) + 2 * max_sequences
        kv = KvConfig(BLOCK_SIZE, (self.num_blocks,), self.dtype.value)
        choice = DeviceChoice(device, triton_kernels(), "a benchmark")
        self.executor = TritonExecutor(self.program, weights, limits, kv, choice)
        table = GLM4_9B["vocab_size"] * GLM4_9B["hidden_size"] * self.dtype.num_bytes
        self.read_bytes = weight_bytes(self.program.slots, self.dtype) - table
        self.kv_token_bytes = sum(
            2 * g.num_layers * g.num_kv_heads * g.head_dim * self.dtype.num_bytes
            for g in self.program.kv_groups
        )
        self.parameters = sum(
            slot.rows * slot.cols for slot in self.program.slots if slot.kind is SlotKind.LINEAR
        )

    def decode_s(self, streams: int, context: int) -> tuple[float, float]:
        """Of one step; the context's keys are whatever lies in the cache."""
        builder = PlanBuilder(BLOCK_SIZE, self.num_blocks)
        tracks = [Track([7] * (context + 64), context) for _ in range(streams)]

        def step() -> None:
            plan = builder.plan([Chunk(track, 1, (0,)) for track in tracks])
            self.executor.execute(replace(plan, want_logits=False))

        for _ in range(3):
            step()
        return timed(step, 20)

    def prefill_s(self, num_tokens: int) -> tuple[float, float]:
        """Of a prompt in one step, with its first token."""

        def step() -> None:
            builder = PlanBuilder(BLOCK_SIZE, self.num_blocks)
            plan = builder.plan([Chunk(Track([7] * num_tokens), num_tokens, (num_tokens - 1,))])
            self.executor.execute(replace(plan, want_logits=False))

        return timed(step)


def rows(deadline: float) -> Iterator[Row]:
    """All rows, as long as there is time; `deadline` is a `time.monotonic`."""
    ceilings = measure_ceilings()
    yield Row("copy", ceilings.copy_bytes_s / 1e9, "GB/s")
    yield Row("products", ceilings.products_s / 1e12, "TFLOP/s")
    for form in ("dense", *CODES):
        if time.monotonic() > deadline:
            return
        yield from _model_rows(form, ceilings, deadline)
        torch.cuda.empty_cache()


def _model_rows(form: str, ceilings: Ceilings, deadline: float) -> Iterator[Row]:
    streams = (1, 8, 32, 128) if form == "dense" else (1, 32)
    model = Model(form, 8192 if form == "dense" else 1024, 128, 160_000)
    yield Row(f"{form}: random weights made", model.fill_s, "s")
    cases = [(n, 1024) for n in streams] + ([(1, 8192)] if form == "dense" else [])
    for count, context in cases:
        if time.monotonic() > deadline:
            break
        seconds, spread = model.decode_s(count, context)
        read = model.read_bytes + count * context * model.kv_token_bytes
        limit = read / ceilings.copy_bytes_s
        name = f"{form}: decode step, {count} × {context}"
        yield Row(name, seconds * 1e3, "ms", limit * 1e3, spread * 1e3)
    for num_tokens in (1024, 4096, 8192) if form == "dense" else ():
        if time.monotonic() > deadline:
            break
        seconds, spread = model.prefill_s(num_tokens)
        limit = 2 * model.parameters * num_tokens / ceilings.products_s
        yield Row(f"{form}: prefill {num_tokens}", seconds * 1e3, "ms", limit * 1e3, spread * 1e3)
    for reason, count in sorted(model.executor.graphs.counts.items()):
        yield Row(f"{form}: steps: {reason}", float(count), "steps")
    model.executor.close()
