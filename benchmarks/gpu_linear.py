"""Linear layers on a card against its limits: bytes a second for few rows, products for many.

    python benchmarks/gpu_linear.py [--json FILE]

Shapes are those of GLM-4 9B. Every time is that of a launch within a CUDA graph of many, over so
many copies of the weight that none is in the L2 cache; median and spread of five replays. The
limits, a copy and cuBLAS's matrix product, are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from hearth.kernels.triton import tiles
from hearth.kernels.triton.layout import CodedMatrix, DenseMatrix, Matrix, words_a_row
from hearth.kernels.triton.linear import linear

SHAPES = ((27_392, 4096), (4608, 4096))
FEW, MANY = (1, 8, 32), 4096
GROUP_SIZE = 128
COPIED_BYTES = 1 << 30
WORKING_SET_BYTES = 512 << 20  # several times the largest L2 cache
REPLAYS = 5
LEAST_LAUNCHES = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `share` of the limit that was measured in this run."""

    form: str
    rows: int
    cols: int
    tokens: int
    microseconds: float
    spread: float
    rate: float
    unit: str
    share: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second that a copy reads and writes, and operations a second of a matrix product."""

    bytes_per_s: float
    flop_per_s: float


def seconds(launches: list[Callable[[], object]]) -> tuple[float, float]:
    """Median of a launch, and (slowest − fastest) / median, over replays of all of them.

    A graph holds enough launches that what the host adds to a replay (some 10 µs) is lost in them.
    """
    launches[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(-(-LEAST_LAUNCHES // len(launches))):
            for launch in launches:
                launch()
    graph.replay()
    num_launches = -(-LEAST_LAUNCHES // len(launches)) * len(launches)
    times = []
    for _ in range(REPLAYS):
        torch.cuda.synchronize()
        start = perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((perf_counter() - start) / num_launches)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def limits(dtype: torch.dtype) -> Limits:
    """What the card copies and multiplies at best, measured."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy, _ = seconds([lambda: target.copy_(source)])
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product, _ = seconds([lambda: torch.matmul(a, b, out=out)])
    return Limits(2 * COPIED_BYTES / copy, 2 * 8192**3 / product)


def random_weight(form: str, rows: int, cols: int, dtype: torch.dtype) -> Matrix:
    """Never zeros: a card multiplies them with less power, and faster."""
    if form == "dense":
        return DenseMatrix((torch.randn(rows, cols, device="cuda") / 64).to(dtype))
    words = torch.randint(-(1 << 31), (1 << 31) - 1, (words_a_row(cols), rows), device="cuda")
    scales = torch.rand(-(-cols // GROUP_SIZE), rows, device="cuda") / 64
    return CodedMatrix(words.to(torch.int32), scales, None, 4, GROUP_SIZE, cols)


def weight_bytes(weight: Matrix) -> int:
    """What one launch reads of a weight."""
    if isinstance(weight, DenseMatrix):
        return weight.data.nbytes
    return weight.codes.nbytes + weight.scales.nbytes


def launches(weights: list[Matrix], rows: int, x: Tensor) -> list[Callable[[], object]]:
    """A launch for each copy; scratch and counters are shared, as in a step."""
    out = torch.empty(len(x), rows, dtype=x.dtype, device="cuda")
    floats = tiles.scratch_floats(len(x), rows, x.shape[1])
    scratch = torch.empty(floats, device="cuda") if floats else None
    counters = torch.zeros(tiles.NUM_COUNTERS, dtype=torch.int32, device="cuda")

    def launch_of(weight: Matrix) -> Callable[[], object]:
        return lambda: linear(x, weight, out, scratch=scratch, counters=counters)

    return [launch_of(weight) for weight in weights]


def measure() -> list[Row]:
    """All rows of the table, on the current card; takes some 20 s, and 2 GiB."""
    capability = torch.cuda.get_device_capability()
    dtype = torch.bfloat16 if capability >= (8, 0) else torch.float16
    limit = limits(dtype)
    table = []
    for rows, cols in SHAPES:
        for form in ("dense", "int4"):
            first = random_weight(form, rows, cols, dtype)
            copies = -(-WORKING_SET_BYTES // weight_bytes(first))
            weights = [first] + [random_weight(form, rows, cols, dtype) for _ in range(copies - 1)]
            for tokens in (*FEW, MANY):
                x = torch.randn(tokens, cols, device="cuda").to(dtype)
                used = weights if tokens != MANY else weights[:2]
                time, spread = seconds(launches(used, rows, x))
                rate, unit, most = weight_bytes(first) / time, "bytes/s", limit.bytes_per_s
                if tokens == MANY:
                    rate, unit, most = 2 * tokens * rows * cols / time, "FLOP/s", limit.flop_per_s
                share = rate / most
                table.append(Row(form, rows, cols, tokens, time * 1e6, spread, rate, unit, share))
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure()
    for row in table:
        print(
            f"{row.form:6} {row.rows:6} × {row.cols:5}  {row.tokens:5} rows  "
            f"{row.microseconds:9.1f} µs ± {row.spread:4.0%}  {row.rate / 1e12:7.2f} T{row.unit:8}"
            f"{row.share:5.0%} of the limit"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in table], indent=1))


if __name__ == "__main__":
    main()
