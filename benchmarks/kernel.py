"""Each operation of the CPU executor against its floor by bytes and by operations.

    python -m benchmarks.kernel [--model 1.5b] [--scheme int4] [--only linear,row,attend]
                                [--rows 1,8,512] [--json FILE]

One operation runs many times in one step, with weights (or KV) of its own each time, so that
caches do not help, and the same step without it is subtracted; see `kernel_cases`. The machine's
ceilings (`native/ceilings.cpp`) are measured before and after each group of figures:

    floor, bytes   weights or KV once, at the read bandwidth (rows and results are not counted for
                   linear layers; for operations on rows they are all there is, and often in cache)
    floor, ops     2·M·N·K at the int8 peak, exact layers at the fp32
    peak, attention at that of bfloat16 pairs
    step           whole steps of the model, without scheduler and HTTP, at their limit's sum
    limit          the larger of the two; `%` is limit ÷ median time, `best %` limit ÷ fastest

Operations with one tile follow each other without a barrier. Never asserts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ceilings import DEFAULT_CACHE_DIR, Ceiling, Ceilings, mean_of, running_ceilings
from benchmarks.kernel_cases import (
    BLOCK_SIZE,
    QUANTS,
    SHAPES,
    Bed,
    Point,
    attention_beds,
    linear_beds,
    row_op_beds,
)
from benchmarks.kernel_steps import POINTS, StepRig, loaded
from benchmarks.machine import machine

from hearth.core.spec import KvDType
from hearth.core.step import KvConfig, StepLimits
from hearth.core.units import round_up
from hearth.engine.synthetic import Segment, plan_of
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights

KINDS = ("step", "linear", "row", "attend")
LEAST_S = 0.3  # of measuring one point; more repeats where they fit
MOST_REPEATS = 60
WARM_CHUNK = 512


@dataclass(frozen=True)
class Row:
    """One line of the table; milliseconds of one operation."""

    kind: str
    name: str
    rows: int
    median_ms: float
    best_ms: float
    bytes_floor_ms: float
    ops_floor_ms: float
    read_gb_s: float  # the ceiling
    repeats: int

    @property
    def limit_ms(self) -> float:
        """What cannot be beaten."""
        return max(self.bytes_floor_ms, self.ops_floor_ms)

    def line(self) -> str:
        """For a terminal."""
        return (
            f"{self.name:34} {self.rows:4d} {self.median_ms:9.4f} {self.best_ms:9.4f} "
            f"{self.bytes_floor_ms:9.4f} {self.ops_floor_ms:9.4f} "
            f"{100 * self.limit_ms / self.median_ms:6.1f} {100 * self.limit_ms / self.best_ms:6.1f}"
        )


class Rig:
    """The two executors of a bed, their weights filled and their KV written."""

    def __init__(
        self, bed: Bed, threads: int, isa: str, kv_dtype: KvDType = KvDType.BFLOAT16
    ) -> None:
        """Takes the memory of both."""
        self._bed = bed
        self._kv_dtype = kv_dtype
        self._executors = [self._executor(full, threads, isa) for full in (False, True)]

    def _executor(self, full: bool, threads: int, isa: str) -> CpuExecutor:
        bed = self._bed
        program = bed.program(full)
        weights = CpuWeights(program)
        for seed, slot in enumerate(program.slots):
            weights.fill_random(slot, seed)
        most_rows = max([WARM_CHUNK, *(p.rows for p in bed.points)])
        kv_tokens = round_up(max(bed.warm_kv_tokens, most_rows), WARM_CHUNK)
        num_blocks = (kv_tokens // BLOCK_SIZE,) * len(program.kv_groups)
        kv = KvConfig(BLOCK_SIZE, num_blocks, self._kv_dtype)
        limits = StepLimits(most_rows, 64, 1, 1 << 20)
        return CpuExecutor(program, weights, limits, kv, threads, isa)

    def warm(self) -> None:
        """Writes every block of KV, as short sequences: memory never written reads as one page."""
        for first in range(0, self._bed.warm_kv_tokens, WARM_CHUNK):
            parts = [Segment(0, BLOCK_SIZE)] * (WARM_CHUNK // BLOCK_SIZE)
            plan = plan_of(parts, len(self._bed.kv_groups), BLOCK_SIZE, first // BLOCK_SIZE)
            for executor in self._executors:
                executor.execute(plan)

    def times(
        self, point: Point, repeats: int, least_s: float = LEAST_S
    ) -> tuple[list[float], list[float]]:
        """Seconds of the steps without and with the operation, alternating."""
        plan = plan_of(point.segments, len(self._bed.kv_groups), BLOCK_SIZE)
        found: tuple[list[float], list[float]] = ([], [])
        begin = time.perf_counter()
        for number in range(-1, MOST_REPEATS):
            for executor, times in zip(self._executors, found):
                before = time.perf_counter()
                executor.execute(plan)
                if number >= 0:  # the first touches what has not been touched
                    times.append(time.perf_counter() - before)
            spent = time.perf_counter() - begin
            if number + 1 >= repeats and spent >= least_s:
                break
        return found

    def close(self) -> None:
        """Releases memory and threads."""
        for executor in self._executors:
            executor.close()


def measure(bed: Bed, ceilings: Ceilings, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one bed."""
    rig = Rig(bed, options.threads, options.isa)
    try:
        rig.warm()
        before = ceilings.measure()
        taken = [(point, *rig.times(point, options.repeats)) for point in bed.points]
        ceiling = mean_of([before, ceilings.measure()])
    finally:
        rig.close()
    for point, without, full in taken:
        yield row_of(bed, point, ceiling, without, full)


def row_of(
    bed: Bed, point: Point, ceiling: Ceiling, without: Sequence[float], full: Sequence[float]
) -> Row:
    """Differences, divided by the copies, beside the floors."""
    a_copy = 1e3 / len(bed.copies)
    return Row(
        kind=bed.kind,
        name=f"{bed.name} {point.label}".rstrip(),
        rows=point.rows,
        median_ms=max(1e-6, (statistics.median(full) - statistics.median(without)) * a_copy),
        best_ms=max(1e-6, (min(full) - min(without)) * a_copy),
        bytes_floor_ms=ceiling.floor_s(point.num_bytes) * 1e3,
        ops_floor_ms=ceiling.compute_s(point.ops) * 1e3,
        read_gb_s=ceiling.read_gb_s,
        repeats=len(full),
    )


def measure_steps(ceilings: Ceilings, options: argparse.Namespace) -> Iterator[Row]:
    """Whole steps, in each scheme that has a limit."""
    points = tuple(p for p in POINTS if p.num_rows in options.rows and options.name in "step")
    for scheme in (s for s in options.scheme if s in {"int4", "int8"} and points):
        rig = StepRig(loaded(options.model, scheme), points, options.threads, options.isa)
        for point in points:
            before = ceilings.measure()
            times = list(rig.times(point, options.repeats, LEAST_S))
            ceiling = mean_of([before, ceilings.measure()])
            yield Row(
                kind="step",
                name=f"step {scheme} {point.label}",
                rows=point.num_rows,
                median_ms=statistics.median(times) * 1e3,
                best_ms=min(times) * 1e3,
                bytes_floor_ms=ceiling.floor_s(rig.scheme.weight_bytes) * 1e3,
                ops_floor_ms=point.floor_s(rig.scheme, ceiling) * 1e3,
                read_gb_s=ceiling.read_gb_s,
                repeats=len(times),
            )
        rig.executor.close()


def beds_of(options: argparse.Namespace) -> Iterator[Bed]:
    """What was asked for."""
    shape = SHAPES[options.model]
    if "linear" in options.only:
        for scheme in options.scheme:
            yield from linear_beds(shape, scheme, options.rows)
    if "row" in options.only:
        yield from row_op_beds(shape, options.rows)
    if "attend" in options.only:
        yield from attention_beds(shape, options.contexts, 512)


def measured(ceilings: Ceilings, options: argparse.Namespace) -> Iterator[Row]:
    """All rows that were asked for."""
    if "step" in options.only:
        yield from measure_steps(ceilings, options)
    for bed in beds_of(options):
        if options.name in bed.name:
            yield from measure(bed, ceilings, options)


def parse_arguments() -> argparse.Namespace:
    """Flags."""

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="1.5b")
    parser.add_argument("--scheme", type=words, default=["int4"], help=", ".join(QUANTS))
    parser.add_argument("--only", type=words, default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--name", default="", help="only operations whose names contain this")
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 512])
    parser.add_argument("--contexts", type=numbers, default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    options = parser.parse_args()
    for wrong in {*options.scheme} - {*QUANTS} | {*options.only} - {*KINDS}:
        parser.error(f"{wrong!r} is none of {', '.join([*QUANTS, *KINDS])}")
    return options


def main() -> None:
    """Prints a table; writes JSON where asked."""
    options = parse_arguments()
    rows: list[Row] = []
    print(
        f"{'operation':34} {'rows':>4} {'ms':>9} {'best':>9} {'bytes':>9} {'ops':>9} "
        f"{'%':>6} {'best %':>6}"
    )
    with running_ceilings(options.threads, options.cache_dir) as ceilings:
        for row in measured(ceilings, options):
            rows.append(row)
            print(row.line(), flush=True)
        ceiling = mean_of(ceilings.taken) if ceilings.taken else None
        if ceiling is None:
            raise SystemExit("no operation has such a name")
    print(
        f"ceilings: {ceiling.read_gb_s:.1f} GB/s (median pass {ceiling.read_gb_s_median:.1f}), "
        f"int8 {ceiling.int8_gop_s:.0f} GOP/s, fp32 {ceiling.fp32_gflop_s:.0f} GFLOP/s, "
        f"bf16 {ceiling.bf16_gflop_s:.0f}; "
        f"{options.threads} threads"
    )
    if options.json:
        body = {
            "machine": machine(),
            "threads": options.threads,
            "model": options.model,
            "ceilings": [asdict(c) for c in ceilings.taken],
            "operations": [{**asdict(row), "limit_ms": row.limit_ms} for row in rows],
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
