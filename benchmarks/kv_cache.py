"""Attention over keys and values in every form that they can be stored in, in turns.

    python -m benchmarks.kv_cache [--model 1.5b] [--contexts 1024,8192,32768] [--rounds 7]

Milliseconds of one layer's attention: one decoding row, and the last 512 rows of a prompt. As in
`kernel.py` each layer has keys and values of its own, more than caches hold, and the same step
without attention is subtracted. A round measures every form once, in turns, since the memory of a
shared machine is now fast and now slow; best and median of the rounds, how many times as fast as
bfloat16 at its best, and the median of what it was in each round. `GB/s`: codes and scales that are
read, at the best time. Writing is measured likewise, of 512 rows. Never asserts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.kernel import Rig
from benchmarks.kernel_cases import SHAPES, Bed, Shape, attention_beds

from hearth.core.spec import KvDType
from hearth.kernels.packing import kv_head_bytes

FORMS = (KvDType.BFLOAT16, KvDType.INT8, KvDType.FP8, KvDType.INT4)
ROTATED_BYTES = 192 << 20  # of bfloat16, in all layers of a bed together
CHUNK = 512


@dataclass(frozen=True)
class Taken:
    """Milliseconds of one layer, a figure for each round."""

    dtype: KvDType
    ms: tuple[float, ...]


def measure(bed: Bed, rounds: int, threads: int, isa: str) -> list[Taken]:
    """All forms, one after the other in each round."""
    rigs = [Rig(bed, threads, isa, dtype) for dtype in FORMS]
    taken: list[list[float]] = [[] for _ in FORMS]
    try:
        for rig in rigs:
            rig.warm()
        for _ in range(rounds):
            for rig, times in zip(rigs, taken):
                without, full = rig.times(bed.points[-1], 1, least_s=0.1)
                times.append(1e3 * (min(full) - min(without)) / len(bed.copies))
    finally:
        for rig in rigs:
            rig.close()
    return [Taken(dtype, tuple(times)) for dtype, times in zip(FORMS, taken)]


def report(name: str, shape: Shape, num_tokens: int, taken: Sequence[Taken]) -> None:
    """A line for each form."""
    base = taken[0]
    for one in taken:
        best, median = min(one.ms), statistics.median(one.ms)
        ratio = statistics.median(b / m for b, m in zip(base.ms, one.ms))
        num_bytes = num_tokens * shape.kv_heads * kv_head_bytes(shape.head_dim, one.dtype)
        print(
            f"| {name} | {one.dtype} | {best:.4f} | {median:.4f} | {min(base.ms) / best:.2f} | "
            f"{ratio:.2f} | {num_bytes / best / 1e6:.1f} |",
            flush=True,
        )


def main() -> None:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="1.5b")
    parser.add_argument("--contexts", type=numbers, default=[1024, 8192, 32768])
    parser.add_argument("--name", default="", help="only cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    given = parser.parse_args()
    shape = SHAPES[given.model]
    print(f"{shape.heads} query heads, {shape.kv_heads} key/value heads of {shape.head_dim}\n")
    print("| case | KV | ms, best | ms, median | × bf16, best | median of ratios | GB/s |")
    print("|---|---|---|---|---|---|---|")
    for context in given.contexts:
        for bed in attention_beds(shape, [context], CHUNK, ROTATED_BYTES):
            point = bed.points[-1]
            name = f"{point.rows} rows written" if bed.kind == "kv_write" else point.label
            if given.name not in name or len(point.segments) > 1:
                continue
            if bed.kind == "kv_write" and context != given.contexts[0]:
                continue
            tokens = point.rows if bed.kind == "kv_write" else context
            report(name, shape, tokens, measure(bed, given.rounds, given.threads, given.isa))


if __name__ == "__main__":
    main()
