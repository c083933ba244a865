"""Attention on a card against its limits: decode by bytes a second, prefill by FLOP a second.

    python -m benchmarks.gpu_attention [--json FILE]

Heads are those of GLM-4 9B: 32 query heads, 2 key heads of 128. Every time is that of a launch
within a CUDA graph of many, over so many layers of a cache
that none is in the L2 cache; median and spread of five replays. The limits, a copy and cuBLAS's
matrix product, are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from benchmarks.gpu_linear import Limits, limits, seconds

from hearth.core.program import KvGroupSpec
from hearth.core.spec import KvDType
from hearth.core.units import ceil_div
from hearth.kernels.triton.attention import (
    AttentionShape,
    StepTables,
    attend,
    attend_decode,
    decode_scratch_floats,
)
from hearth.kernels.triton.kv import KvCache

SHAPE = AttentionShape(32, 2, 128, 128**-0.5)
WIDTH = (SHAPE.num_heads + 2 * SHAPE.num_kv_heads) * SHAPE.head_dim
BLOCK_SIZE = 64
CONTEXTS, STREAMS = (1024, 8192), (1, 32, 128)
PROMPT = 4096
WORKING_SET_BYTES = 512 << 20
MOST_LAYERS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `share` of the limit that was measured in this run."""

    what: str
    kv_dtype: str
    streams: int
    context: int
    microseconds: float
    spread: float
    rate: float
    unit: str
    share: float


def tables(streams: int, context: int, rows_each: int) -> StepTables:
    """Sequences of `context` tokens, the last `rows_each` of which are the step's; own blocks."""
    listed = ceil_div(context, BLOCK_SIZE)
    order = torch.randperm(streams * listed)
    arrays = (
        torch.arange(streams + 1) * rows_each,
        torch.full((streams,), context - rows_each),
        order,
        torch.arange(streams + 1) * listed,
        torch.zeros(streams),
        torch.arange(streams).repeat_interleave(rows_each),
    )
    return StepTables(*(array.int().cuda() for array in arrays))


def random_cache(streams: int, context: int, dtype: KvDType) -> tuple[KvCache, int]:
    """Layers enough that their keys and values are several times the L2 cache."""
    blocks = streams * ceil_div(context, BLOCK_SIZE)
    token_bytes = 2 * SHAPE.num_kv_heads * SHAPE.head_dim * dtype.bits // 8
    layers = ceil_div(WORKING_SET_BYTES, blocks * BLOCK_SIZE * token_bytes)
    layers = min(layers, MOST_LAYERS)
    spec = KvGroupSpec(layers, SHAPE.num_kv_heads, SHAPE.head_dim)
    cache = KvCache((spec,), (blocks,), BLOCK_SIZE, dtype, "cuda")
    data = cache.group(0).data
    if dtype.is_coded:
        # Scales among the codes: numbers of any size, whose time is that of all others.
        data.view(torch.int8).random_(0, 64)
    else:
        data.normal_()
    return cache, layers


def decode(dtype: KvDType, rows: torch.dtype, limit: Limits) -> list[Row]:
    """One new token a stream; the bytes are those of the keys and values read."""
    found = []
    for context in CONTEXTS:
        for streams in STREAMS:
            cache, layers = random_cache(streams, context, dtype)
            qkv = torch.randn(streams, WIDTH, device="cuda").to(rows)
            out = torch.empty_like(qkv[:, : SHAPE.num_heads * SHAPE.head_dim].contiguous())
            size = decode_scratch_floats(
                streams, streams * (context + BLOCK_SIZE), SHAPE.num_heads, SHAPE.head_dim
            )
            scratch = torch.empty(size, device="cuda")
            counters = torch.zeros(streams * SHAPE.num_kv_heads, dtype=torch.int32, device="cuda")
            given = tables(streams, context, 1)
            calls: list[Callable[[], None]] = [
                partial(
                    attend_decode, qkv, out, cache, 0, layer, given, SHAPE, scratch, None, counters
                )
                for layer in range(layers)
            ]
            time, spread = seconds(calls)
            rate = cache.num_bytes / layers / time
            share = rate / limit.bytes_per_s
            found.append(
                Row("decode", dtype, streams, context, time * 1e6, spread, rate, "bytes/s", share)
            )
            del cache, calls
            torch.cuda.empty_cache()
    return found


def prefill(dtype: KvDType, rows: torch.dtype, limit: Limits) -> list[Row]:
    """A prompt alone; operations are those of the half of the scores that is seen."""
    cache, layers = random_cache(1, PROMPT, dtype)
    qkv = torch.randn(PROMPT, WIDTH, device="cuda").to(rows)
    out = torch.empty(PROMPT, SHAPE.num_heads * SHAPE.head_dim, dtype=rows, device="cuda")
    given = tables(1, PROMPT, PROMPT)
    calls: list[Callable[[], None]] = [
        partial(attend, qkv, out, cache, 0, layer, given, SHAPE) for layer in range(min(layers, 8))
    ]
    time, spread = seconds(calls)
    rate = 2 * PROMPT**2 * SHAPE.num_heads * SHAPE.head_dim / time
    share = rate / limit.flop_per_s
    return [Row("prefill", dtype, 1, PROMPT, time * 1e6, spread, rate, "FLOP/s", share)]


def measure() -> list[Row]:
    """All rows of the table, on the current card; takes some 40 s, and 9 GiB."""
    has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    rows = torch.bfloat16 if has_bfloat16 else torch.float16
    floats = KvDType.BFLOAT16 if has_bfloat16 else KvDType.FLOAT16
    limit = limits(rows)
    table = []
    for dtype in (floats, KvDType.INT8, KvDType.FP8):
        table += decode(dtype, rows, limit) + prefill(dtype, rows, limit)
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure()
    for row in table:
        print(
            f"{row.what:8}{row.kv_dtype:9} {row.streams:4} × {row.context:5}  "
            f"{row.microseconds:9.1f} µs ± {row.spread:4.0%}  {row.rate / 1e12:7.2f} T{row.unit:8}"
            f"{row.share:5.0%} of the limit"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in table], indent=1))


if __name__ == "__main__":
    main()
