"""Launchers of attention over the paged cache: which kernel with which grid, never what it computes.

Both entries give a row the same bits; see `attention_tiles`. Grids follow from the numbers of rows
and sequences alone, so that launches can be captured; nothing is allocated, nothing synchronises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from hearth.core.units import ceil_div
from hearth.kernels.triton.attention_decode import attend_split_kernel, merge_kernel
from hearth.kernels.triton.attention_rows import attend_rows_kernel
from hearth.kernels.triton.attention_tiles import SEGMENT_KEYS
from hearth.kernels.triton.kv import KvCache, KvGroup

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_LEAST_ROWS = 16  # of a product on tensor cores
_PROGRAMS_PER_MULTIPROCESSOR = 2  # of decode attention: so many have their tiles in shared memory
_INTERPRETER_MULTIPROCESSORS = 4


@dataclass(frozen=True, slots=True)
class StepTables:
    """A plan's arrays for one KV group, int32 on the device; see core.step.StepPlan.

    Graphs may have more rows and sequences than the plan: those sequences have no row (equal
    `row_start`), those rows sequence −1.
    """

    row_start: torch.Tensor  # [S+1]
    context: torch.Tensor  # [S]
    blocks: torch.Tensor  # flat
    block_start: torch.Tensor  # [S+1]; offsets into `blocks`
    first_block: torch.Tensor  # [S]
    sequence_of_row: torch.Tensor  # [T]; −1: a row of no sequence


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What of an `Attend` the kernels need; soft_cap 0: none, window 0: all keys before."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    soft_cap: float = 0.0


def decode_scratch_floats(
    num_sequences: int, num_tokens: int, num_heads: int, head_dim: int
) -> int:
    """Elements of scratch so that all keys of `num_tokens` listed tokens can be split.

    With less, even none, sequences are not split when they find no room: slower, same result.
    """
    slots = num_tokens // SEGMENT_KEYS + 2 * num_sequences
    return slots * num_heads * (_width(head_dim) + 2)


def decode_runs(num_sequences: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """Programs that share the segments of a sequence's kv head; 1: keys are not split."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    return max(1, wanted // max(1, num_sequences * num_kv_heads))


def attend_decode(
    qkv: torch.Tensor,
    out: torch.Tensor,
    cache: KvCache,
    group: int,
    layer: int,
    tables: StepTables,
    shape: AttentionShape,
    scratch: torch.Tensor,
    num_runs: int | None = None,
) -> None:
    """Causal attention where every sequence has at most one row (rows of a graph: as many).

    qkv [T, (heads + 2 · kv heads) · head_dim] with q rotated, out [T, heads · head_dim]; float
    types, rows contiguous. Keys and values, the step's own included, are those in the cache.
    `scratch`: float32, see `decode_scratch_floats`. `num_runs`: see `decode_runs`, which is what
    counts without it.
    """
    count = tables.context.shape[0]
    if num_runs is None:
        num_runs = decode_runs(count, shape.num_kv_heads, _multiprocessors(qkv.device))
    if num_runs == 1:
        _launch_rows(qkv, out, cache.group(group), layer, tables, shape, piece_rows=1)
        return
    stored = cache.group(group)
    rows = max(_LEAST_ROWS, triton.next_power_of_2(shape.num_heads // shape.num_kv_heads))
    width = _width(shape.head_dim)
    num_slots = scratch.numel() // (shape.num_heads * (width + 2))
    attend_split_kernel[(count, shape.num_kv_heads, num_runs)](
        qkv, out, stored.data, stored.scales, scratch,
        tables.row_start, tables.context, tables.blocks, tables.block_start, tables.first_block,
        num_slots, *_strides(qkv, out, stored, layer), shape.scale, shape.soft_cap,
        KV_HEADS=shape.num_kv_heads, RUNS=num_runs, ROWS=rows,
        **_constants(qkv, stored, shape), **_options(qkv.device, rows, width, 4),
    )  # fmt: skip
    merge_kernel[(count, shape.num_heads)](
        out, scratch, tables.row_start, tables.context, tables.block_start, num_slots,
        out.stride(0), HEADS=shape.num_heads, HEAD_DIM=shape.head_dim, WIDTH=width,
        BLOCK_SIZE=stored.layout.block_size, WINDOW=shape.window, num_warps=1,
        enable_fp_fusion=False,
    )  # fmt: skip


def attend(
    qkv: torch.Tensor,
    out: torch.Tensor,
    cache: KvCache,
    group: int,
    layer: int,
    tables: StepTables,
    shape: AttentionShape,
) -> None:
    """Causal attention of any rows: prefill in chunks, decode, both. As `attend_decode` otherwise."""
    heads_per_kv = shape.num_heads // shape.num_kv_heads
    most = 128 if _width(shape.head_dim) <= 128 and qkv.dtype != torch.float32 else 64
    piece_rows = max(1, most // heads_per_kv)
    _launch_rows(qkv, out, cache.group(group), layer, tables, shape, piece_rows)


def _launch_rows(
    qkv: torch.Tensor,
    out: torch.Tensor,
    stored: KvGroup,
    layer: int,
    tables: StepTables,
    shape: AttentionShape,
    piece_rows: int,
) -> None:
    heads_per_kv = shape.num_heads // shape.num_kv_heads
    rows = max(_LEAST_ROWS, triton.next_power_of_2(piece_rows * heads_per_kv))
    num_pieces = ceil_div(qkv.shape[0], piece_rows)
    # With pieces of one row every sequence begins at a multiple.
    grid = num_pieces + (tables.context.shape[0] if piece_rows > 1 else 0)
    attend_rows_kernel[(grid, shape.num_kv_heads)](
        qkv, out, stored.data, stored.scales,
        tables.row_start, tables.context, tables.blocks, tables.block_start, tables.first_block,
        tables.sequence_of_row, num_pieces, *_strides(qkv, out, stored, layer),
        shape.scale, shape.soft_cap,
        PIECE_ROWS=piece_rows, ROWS=rows, **_constants(qkv, stored, shape),
        **_options(qkv.device, rows, _width(shape.head_dim), 8 if rows >= 64 else 4),
    )  # fmt: skip


def _strides(
    qkv: torch.Tensor, out: torch.Tensor, stored: KvGroup, layer: int
) -> tuple[int, int, int, int, int, int]:
    """Of rows of qkv and out; of blocks, and in a block where layer, heads and values begin."""
    layout = stored.layout
    in_block = (layer * layout.layer_stride, layout.head_stride, layout.value_offset)
    return (qkv.stride(0), out.stride(0), layout.block_stride, *in_block)


def _constants(qkv: torch.Tensor, stored: KvGroup, shape: AttentionShape) -> dict[str, object]:
    """What kernels are compiled for. Codes are multiplied in the type of the rows."""
    element = qkv.dtype if stored.codes else stored.data.dtype
    return {
        "GROUP": shape.num_heads // shape.num_kv_heads,
        "HEAD_DIM": shape.head_dim,
        "WIDTH": _width(shape.head_dim),
        "ELEMENT": _TYPES[element],
        "BLOCK_SIZE": stored.layout.block_size,
        "WINDOW": shape.window,
        "CODES": stored.codes,
        "HAS_CAP": shape.soft_cap > 0,
    }


def _options(device: torch.device, rows: int, width: int, num_warps: int) -> dict[str, object]:
    """Warps, and how many tiles are loaded ahead: as shared memory has room."""
    return {
        "num_warps": num_warps,
        "num_stages": 3 if _shared_bytes(device) >= 160 * 1024 and width <= 128 else 2,
        "enable_fp_fusion": False,
    }


def _width(head_dim: int) -> int:
    """Columns of a tile: a power of two, at least that of a product on tensor cores."""
    return int(max(_LEAST_ROWS, triton.next_power_of_2(head_dim)))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETER_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _shared_bytes(device: torch.device) -> int:
    """Of a multiprocessor, for one program."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)
