"""Cost of sampling one row: microseconds at a vocabulary of 151,552, on one thread.

    python benchmarks/sampler.py [--repeats 60]

Only the `sample` operation runs, through the C interface, on logits that stay where they are: the
median over the repeats, each over all rows, divided by the rows. Two kinds of logits: `peaked`,
like those of a language model (a few hundred tokens hold 90 %), and `flat` (normal, deviation 1:
tens of thousands do). The physical limit is reading the row once: 606 KB. Never asserts.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from hearth.core.program import BufferRows, BufferSpec, Embed, Linear, Sample, Select, StepProgram
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.core.step import KvConfig, LogitEdits, SamplingArrays, StepLimits, StepPlan
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.library import check
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import HostTensor

VOCABULARY = 151_552
NUM_ROWS = 4
SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 50": {"top_k": 50},
    "min_p 0.05": {"min_p": 0.05},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "greedy, penalties": {"temperature": 0.0, "num_counts": 1000},
    "greedy, own logprob": {"temperature": 0.0, "num_logprobs": 0},
    "greedy, 20 logprobs": {"temperature": 0.0, "num_logprobs": 20},
}


def logits_rows(kind: str) -> NDArray[np.float32]:
    """[NUM_ROWS, VOCABULARY]."""
    random = np.random.default_rng(1)
    rows = random.normal(0, 1, (NUM_ROWS, VOCABULARY))
    if kind == "peaked":
        rows = rows * 2.5
        heads = random.choice(VOCABULARY, (NUM_ROWS, 300), replace=False)
        np.put_along_axis(rows, heads, random.normal(12, 2, (NUM_ROWS, 300)), axis=1)
    return rows.astype(np.float32)


def build_executor(logits: NDArray[np.float32]) -> CpuExecutor:
    """Token i gives row i of the logits: a one-hot row through a head with these columns."""

    def slot(name: str, kind: SlotKind) -> WeightSlot:
        return WeightSlot(name, kind, VOCABULARY, NUM_ROWS, (), QuantSpec(DType.FLOAT32))

    table, head = slot("table", SlotKind.TABLE), slot("head", SlotKind.LINEAR)
    buffers = (
        BufferSpec("x", NUM_ROWS),
        BufferSpec("selected", NUM_ROWS, BufferRows.LOGITS),
        BufferSpec("logits", VOCABULARY, BufferRows.LOGITS),
    )
    ops = (Embed("table", 0), Select(0, 1), Linear(1, "head", None, 2), Sample(2))
    program = StepProgram(buffers, ops, (table, head), (), VOCABULARY)
    weights = CpuWeights(program)
    for where, array in ((table, np.eye(VOCABULARY, NUM_ROWS)), (head, logits.T)):
        data = np.ascontiguousarray(array, np.float32)
        flat = data.view(np.uint8).reshape(-1)
        weights.put(where, 0, HostTensor(flat, DType.FLOAT32, data.shape))
    limits = StepLimits(NUM_ROWS, NUM_ROWS, NUM_ROWS, 64)
    return CpuExecutor(program, weights, limits, KvConfig(16, (), "float32"), 1)


def edits_of(num_counts: int) -> LogitEdits | None:
    """All penalties on so many tokens a row."""
    if num_counts == 0:
        return None
    random = np.random.default_rng(2)
    tokens = [random.permutation(VOCABULARY)[:num_counts] for _ in range(NUM_ROWS)]
    start = np.arange(NUM_ROWS + 1, dtype=np.int32)
    return LogitEdits(
        repetition=np.full(NUM_ROWS, 1.1, np.float32),
        frequency=np.full(NUM_ROWS, 0.5, np.float32),
        presence=np.full(NUM_ROWS, 0.5, np.float32),
        count_start=start * np.int32(num_counts),
        count_tokens=np.concatenate(tokens).astype(np.int32),
        counts=np.full(NUM_ROWS * num_counts, 2, np.int32),
        bias_start=start * np.int32(0),
        bias_tokens=np.zeros(0, np.int32),
        biases=np.zeros(0, np.float32),
    )


def plan_of(how: dict[str, float]) -> StepPlan:
    """One step of NUM_ROWS sequences, all sampled alike."""
    full = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "num_logprobs": -1, **how}
    ramp = np.arange(NUM_ROWS, dtype=np.int32)
    none = np.zeros((0, NUM_ROWS), np.int32)
    sampling = SamplingArrays(
        np.full(NUM_ROWS, full["temperature"], np.float32),
        np.full(NUM_ROWS, full["top_k"], np.int32),
        np.full(NUM_ROWS, full["top_p"], np.float32),
        np.full(NUM_ROWS, full["min_p"], np.float32),
        ramp.astype(np.uint64),
        ramp.copy(),
        np.zeros(NUM_ROWS, np.int32),
        num_logprobs=np.full(NUM_ROWS, full["num_logprobs"], np.int32),
        num_top=max(0, int(full["num_logprobs"])),
        edits=edits_of(int(full.get("num_counts", 0))),
    )
    return StepPlan(
        tokens=ramp,
        positions=np.zeros((3, NUM_ROWS), np.int32),
        row_start=np.arange(NUM_ROWS + 1, dtype=np.int32),
        context=np.zeros(NUM_ROWS, np.int32),
        slots=none,
        blocks=np.zeros(0, np.int32),
        block_start=np.zeros((0, NUM_ROWS + 1), np.int32),
        first_block=none,
        logit_rows=ramp,
        sampling=sampling,
        copies=np.zeros((0, 3), np.int32),
        encoder=np.zeros((0, 3), np.int32),
    )


def measure(executor: CpuExecutor, plan: StepPlan, repeats: int) -> float:
    """Median microseconds a row of the sample operation alone."""
    executor.execute(plan)  # the logits are in their buffer now
    result = executor.execute(plan)
    executor._fill_result(result)
    last = len(executor.program.ops)
    plan_pointer, result_pointer = ctypes.byref(executor._plan), ctypes.byref(executor._result)
    times = []
    for number in range(repeats):
        plan.sampling.position[:] = number  # other draws
        begin = time.perf_counter_ns()
        code = executor._library.hearth_run(
            executor._handle, last - 1, last, plan_pointer, result_pointer
        )
        times.append(time.perf_counter_ns() - begin)
        check(code)
    return statistics.median(times) / 1000 / NUM_ROWS


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    for kind in ("peaked", "flat"):
        executor = build_executor(logits_rows(kind))
        for name, how in SAMPLING.items():
            cost = measure(executor, plan_of(how), options.repeats)
            print(f"{kind:7} {name:20} {cost:8.1f} µs a row")
        executor.close()


if __name__ == "__main__":
    main()
