"""Launchers of attention over the paged cache: which kernel with which grid.

Both entries give a row the same bits; see `attention_tiles`. Grids follow from the numbers of rows
and sequences alone, so that launches can be captured; nothing is allocated, nothing synchronises.
"""

# A launcher takes its tensors.
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hearth.core.units import ceil_div
from hearth.kernels.triton.attention_decode import attend_split_kernel, merge_kernel
from hearth.kernels.triton.attention_options import (
    ProgramOptions,
    card_of,
    decode_options,
    decode_runs,
    row_options,
    width_of,
)
from hearth.kernels.triton.attention_rows import attend_rows_kernel
from hearth.kernels.triton.attention_tiles import SEGMENT_KEYS
from hearth.kernels.triton.kv import KvCache, KvGroup

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
    return slots * num_heads * (width_of(head_dim) + 2)


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
    counters: torch.Tensor | None = None,
) -> None:
    """Causal attention where every sequence has at most one row (rows of a graph: as many).

    qkv [T, (heads + 2 · kv heads) · head_dim] with q rotated, out [T, heads · head_dim]; float
    types, rows contiguous. Keys and values, the step's own included, are those in the cache.
    `scratch`: float32, see `decode_scratch_floats`. `num_runs`: see `decode_runs`, which is what
    counts without it. `counters`: int32 zeros, one a sequence and kv head at least, left zero; with
    them a launch is saved. None of the three changes a bit.
    """
    count, stored = tables.context.shape[0], cache.group(group)
    card, width = card_of(qkv.device), width_of(shape.head_dim)
    options = decode_options(card, shape.num_heads // shape.num_kv_heads, width)
    if num_runs is None:
        num_runs = decode_runs(card, count, shape.num_kv_heads)
    if num_runs == 1:
        _launch_rows(qkv, out, stored, layer, tables, shape, 1, options)
        return
    num_slots = scratch.numel() // (shape.num_heads * (width + 2))
    attend_split_kernel[(count, shape.num_kv_heads, num_runs)](
        qkv, out, stored.data, stored.scales, scratch,
        counters if counters is not None else tables.context,
        tables.row_start, tables.context, tables.blocks, tables.block_start, tables.first_block,
        num_slots, *_strides(qkv, out, stored, layer), shape.scale, shape.soft_cap,
        KV_HEADS=shape.num_kv_heads, RUNS=num_runs, ROWS=options.rows,
        COUNTED=counters is not None,
        **_constants(qkv, stored, shape), **_compilation(options),
    )  # fmt: skip
    if counters is not None:
        return
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
    """Causal attention of any rows: prefill, decode, both. As `attend_decode` otherwise."""
    stored = cache.group(group)
    width, element = width_of(shape.head_dim), _element(qkv, stored)
    options = row_options(card_of(qkv.device), width, element)
    piece_rows = max(1, options.rows // (shape.num_heads // shape.num_kv_heads))
    _launch_rows(qkv, out, stored, layer, tables, shape, piece_rows, options)


def _launch_rows(
    qkv: torch.Tensor,
    out: torch.Tensor,
    stored: KvGroup,
    layer: int,
    tables: StepTables,
    shape: AttentionShape,
    piece_rows: int,
    options: ProgramOptions,
) -> None:
    heads_per_kv = shape.num_heads // shape.num_kv_heads
    rows = max(options.rows, int(triton.next_power_of_2(piece_rows * heads_per_kv)))
    num_pieces = ceil_div(qkv.shape[0], piece_rows)
    # With pieces of one row every sequence begins at a multiple.
    grid = num_pieces + (tables.context.shape[0] if piece_rows > 1 else 0)
    attend_rows_kernel[(grid, shape.num_kv_heads)](
        qkv, out, stored.data, stored.scales,
        tables.row_start, tables.context, tables.blocks, tables.block_start, tables.first_block,
        tables.sequence_of_row, num_pieces, *_strides(qkv, out, stored, layer),
        shape.scale, shape.soft_cap,
        PIECE_ROWS=piece_rows, ROWS=rows, **_constants(qkv, stored, shape),
        **_compilation(options),
    )  # fmt: skip


def _strides(
    qkv: torch.Tensor, out: torch.Tensor, stored: KvGroup, layer: int
) -> tuple[int, int, int, int, int, int]:
    """Of rows of qkv and out; of blocks, and in a block where layer, heads and values begin."""
    layout = stored.layout
    in_block = (layer * layout.layer_stride, layout.head_stride, layout.value_offset)
    return (qkv.stride(0), out.stride(0), layout.block_stride, *in_block)


def _constants(qkv: torch.Tensor, stored: KvGroup, shape: AttentionShape) -> dict[str, object]:
    """What kernels are compiled for."""
    return {
        "GROUP": shape.num_heads // shape.num_kv_heads,
        "HEAD_DIM": shape.head_dim,
        "WIDTH": width_of(shape.head_dim),
        "ELEMENT": TYPES[_element(qkv, stored)],
        "BLOCK_SIZE": stored.layout.block_size,
        "WINDOW": shape.window,
        "CODES": stored.codes,
        "HAS_CAP": shape.soft_cap > 0,
    }


def _element(qkv: torch.Tensor, stored: KvGroup) -> torch.dtype:
    """The type of products: the cache's; codes are multiplied in that of the rows."""
    return qkv.dtype if stored.codes else stored.data.dtype


def _compilation(options: ProgramOptions) -> dict[str, object]:
    return {
        "num_warps": options.num_warps,
        "num_stages": options.num_stages,
        "enable_fp_fusion": False,
    }
