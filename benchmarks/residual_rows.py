"""What residuals of int8 rows cost: one layer, rounding included, interleaved.

    python -m benchmarks.residual_rows [--bits 4] [--rows 1,512] [--rounds 7] [--threads 1]

4096 → 4096 in groups of 128, with plain int8 rows, with rows that may keep residuals and have no
outliers, with 6 of 4096 channels as outliers (six of 32 groups keep residuals), with one in every
group, and with float32 rows. Each round times every variant once; medians, the spread of the
quartiles, and the median of the ratios to plain int8 rows of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearth.core.program import BufferSpec, Embed, KvGroupSpec, Linear, Op, Quantize, StepProgram
from hearth.core.spec import DType, KvDType, QuantSpec, SlotKind, WeightSlot
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.plain_steps import Layout, Rows, step_plan
from hearth.kernels.cpu.executor import CpuExecutor, Tiling
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import HostTensor

WIDTH, GROUP = 4096, 128
MOST_ROWS = 512
COLD_BYTES = 256 << 20  # weights of all copies for few rows: more than a cache holds
OUTLIER = 100.0
UNUSED_KV = KvGroupSpec(1, 1, 16)  # a plan has one group at least


@dataclass(frozen=True)
class Variant:
    """Rows of the layer, and how many of its 4096 channels are outliers."""

    name: str
    outliers: int = 0
    int8: bool = True
    residual: bool = True


VARIANTS = (
    Variant("int8", residual=False),
    Variant("residuals, no outlier"),
    Variant("residuals, 6 outliers", 6),
    Variant("residuals, one in each group", WIDTH // GROUP),
    Variant("float32", int8=False, residual=False),
)


def program_of(variant: Variant, bits: int, copies: int) -> StepProgram:
    """Rows of a table through the layer, `copies` times, each with weights of its own."""
    quant = QuantSpec(
        DType.FLOAT32, bits, GROUP, int8_rows=variant.int8, residual_rows=variant.residual
    )
    buffers = [BufferSpec("x", WIDTH), BufferSpec("y", WIDTH)]
    if variant.int8:
        buffers.append(BufferSpec("codes", WIDTH, group_size=GROUP, residual=variant.residual))
    ops: list[Op] = [Embed("table", 0)]
    slots = [WeightSlot("table", SlotKind.TABLE, MOST_ROWS, WIDTH, (), QuantSpec())]
    for number in range(copies):
        name = f"weight{number}"
        slots.append(WeightSlot(name, SlotKind.LINEAR, WIDTH, WIDTH, (), quant))
        if variant.int8:
            ops.append(Quantize(0, 2))
        ops.append(Linear(2 if variant.int8 else 0, name, None, 1))
    return StepProgram(tuple(buffers), tuple(ops), tuple(slots), (UNUSED_KV,), MOST_ROWS)


def table_of(variant: Variant) -> NDArray[np.float32]:
    """Normal values; outliers in as many groups."""
    random = np.random.default_rng(1)
    table = random.normal(0, 1, (MOST_ROWS, WIDTH)).astype(np.float32)
    groups = random.choice(WIDTH // GROUP, variant.outliers, replace=False)
    table[:, groups * GROUP + 3] = OUTLIER
    return table


def executor_of(variant: Variant, bits: int, copies: int, threads: int) -> CpuExecutor:
    """With random codes."""
    program = program_of(variant, bits, copies)
    weights = CpuWeights(program)
    table = table_of(variant)
    weights.put(program.slots[0], 0, HostTensor(table.view(np.uint8), DType.FLOAT32, table.shape))
    for slot in program.slots[1:]:
        weights.fill_random(slot, 1)
    limits = StepLimits(MOST_ROWS, 1, 1, MOST_ROWS)
    kv = KvConfig(32, (MOST_ROWS // 32,), KvDType.FLOAT32)
    tiling = Tiling(frozenset())  # a run begins behind the table
    return CpuExecutor(program, weights, limits, kv, threads, tiling=tiling)


def seconds(executor: CpuExecutor, num_rows: int) -> float:
    """Of the layers alone, each."""
    rows = [Rows(list(range(num_rows)), 0, 0, 1)]
    plan = step_plan(rows, Layout(32, MOST_ROWS // 32, 1, MOST_ROWS), 1)
    executor.execute_part(plan, 0, 1)
    start = time.perf_counter()
    executor.execute_part(plan, 1, len(executor.program.ops))
    copies = sum(isinstance(op, Linear) for op in executor.program.ops)
    return (time.perf_counter() - start) / copies


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--rows", default="1,512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(f"| int{given.bits}, {given.threads} threads | rows | ms | quartiles | to int8 |")
    print("|---|---|---|---|---|")
    for num_rows in map(int, given.rows.split(",")):
        copies = COLD_BYTES // (WIDTH * WIDTH * given.bits // 8) if num_rows < 16 else 1
        executors = [executor_of(v, given.bits, copies, given.threads) for v in VARIANTS]
        times = [
            [seconds(executor, num_rows) for executor in executors]
            for _ in range(given.rounds + 1)  # the first one warms up
        ]
        for variant, column in zip(VARIANTS, np.array(times[1:]).T, strict=True):
            ratios = column / np.array(times[1:])[:, 0]
            low, middle, high = statistics.quantiles(column * 1e3, n=4)
            print(
                f"| {variant.name} | {num_rows} | {middle:.3f} | {low:.3f} to {high:.3f} | "
                f"{statistics.median(ratios):.2f} |"
            )
        for executor in executors:
            executor.close()


if __name__ == "__main__":
    main()
