"""Attention of images: every row sees all rows of its segment (an image, or a window of one).

Keys and values are rows of the step, not of a cache. Tiles begin at a segment's first row, so that
an image has the same bits alone and among others.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
import torch
import triton
import triton.language as tl

from hearth.core.units import ceil_div
from hearth.kernels.triton.attention import TYPES, AttentionShape
from hearth.kernels.triton.attention_options import card_of, row_options, width_of
from hearth.kernels.triton.attention_rows import piece_of_rows
from hearth.kernels.triton.attention_tiles import (
    TILE_KEYS,
    add_tile,
    load_rows,
    nothing,
    store_rows,
)


def attend_image(
    qkv: torch.Tensor,
    out: torch.Tensor,
    segment_start: torch.Tensor,
    segment_of_row: torch.Tensor,
    shape: AttentionShape,
) -> None:
    """Bidirectional attention within segments of rows.

    qkv [T, (heads + 2 · kv heads) · head_dim] with q and k rotated, out [T, heads · head_dim];
    segment_start [N+1] and segment_of_row [T], int32: segment n has the rows segment_start[n] …
    segment_start[n+1] − 1. `shape` has neither window nor soft cap.
    """
    width = width_of(shape.head_dim)
    options = row_options(card_of(qkv.device), width, qkv.dtype)
    num_pieces = ceil_div(qkv.shape[0], options.rows)
    grid = (num_pieces + segment_start.shape[0] - 1, shape.num_heads)
    attend_image_kernel[grid](
        qkv, out, segment_start, segment_of_row, num_pieces, qkv.stride(0), out.stride(0),
        shape.scale, HEADS=shape.num_heads, KV_HEADS=shape.num_kv_heads, HEAD_DIM=shape.head_dim,
        WIDTH=width, ELEMENT=TYPES[qkv.dtype], ROWS=options.rows, TILE=TILE_KEYS,
        num_warps=options.num_warps,
        num_stages=options.num_stages, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def attend_image_kernel(
    qkv, out, segment_start, segment_of_row, num_pieces, row_stride, out_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ELEMENT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid: (pieces, query heads); see `piece_of_rows`."""
    segment, first, last, begin = piece_of_rows(
        tl.program_id(0), num_pieces, segment_start, segment_of_row, ROWS
    )
    if (segment < 0) | (first >= last):
        return
    head = tl.program_id(1)
    end = tl.load(segment_start + segment + 1)
    index = tl.arange(0, ROWS)
    row = first + index
    is_row = row < last
    q = load_rows(qkv, row, head + index * 0, is_row, row_stride, ELEMENT, HEAD_DIM, WIDTH)
    key_head = HEADS + head // (HEADS // KV_HEADS)
    top, total, mixed = nothing(ROWS, WIDTH)
    place = tl.arange(0, TILE)
    for start in range(begin, end, TILE):
        key = start + place
        is_there = key < end
        keys = load_rows(
            qkv, key, key_head + place * 0, is_there, row_stride, ELEMENT, HEAD_DIM, WIDTH
        )
        values = load_rows(
            qkv, key, key_head + KV_HEADS + place * 0, is_there, row_stride, ELEMENT, HEAD_DIM,
            WIDTH,
        )  # fmt: skip
        top, total, mixed = add_tile(
            q, keys, values, key, key, is_there[None, :], scale, 0.0, top, total, mixed,
            False, False, False, True,
        )  # fmt: skip
    store_rows(out, row, head + index * 0, is_row, out_stride, total, mixed, HEAD_DIM, WIDTH)
