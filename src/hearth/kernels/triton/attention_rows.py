"""Attention of any rows: one program takes some rows of one sequence and all keys they see.

For prefill, and for decode steps with so many sequences that keys need not be split. The rows of a
program are (row, query head) pairs of one kv head, so that a tile of keys is loaded once for all
heads that share it.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
import triton
import triton.language as tl

from hearth.kernels.triton.attention_tiles import first_visible, load_rows, mix_keys, store_rows


@triton.jit
def piece_of_rows(piece, num_pieces, row_start, sequence_of_row, PIECE_ROWS: tl.constexpr):
    """The rows of a program: (sequence, first row, last row + 1, first row of the sequence).

    Rows are cut at multiples of PIECE_ROWS: a program of the first `num_pieces` takes the part of
    its PIECE_ROWS rows that belongs to the sequence of the first of them. What a sequence has
    before its first multiple is for the program `num_pieces` + sequence. So the grid depends on the
    number of rows and sequences alone, and no program searches. Sequence −1, or no row: nothing to
    do. Late rows, which see the most keys, come first.
    """
    is_whole = piece < num_pieces
    cut = tl.maximum(num_pieces - 1 - piece, 0) * PIECE_ROWS
    sequence = tl.where(is_whole, tl.load(sequence_of_row + cut), piece - num_pieces)
    at = tl.maximum(sequence, 0)
    begin, end = tl.load(row_start + at), tl.load(row_start + at + 1)
    first = tl.where(is_whole, cut, begin)
    limit = tl.where(is_whole, cut + PIECE_ROWS, tl.cdiv(begin, PIECE_ROWS) * PIECE_ROWS)
    return sequence, first, tl.minimum(limit, end), begin


@triton.jit
def attend_rows_kernel(
    qkv, out, data, scales, row_start, context, blocks, block_start, first_block,
    sequence_of_row, num_pieces, row_stride, out_stride, block_stride, layer_offset, head_stride,
    value_offset, scale, soft_cap,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ELEMENT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CODES: tl.constexpr, HAS_CAP: tl.constexpr,
    PIECE_ROWS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid: (pieces, kv heads); see `piece_of_rows`. GROUP query heads share a kv head."""
    sequence, first, last, begin = piece_of_rows(
        tl.program_id(0), num_pieces, row_start, sequence_of_row, PIECE_ROWS
    )
    if (sequence < 0) | (first >= last):
        return
    kv_head = tl.program_id(1)
    pair = tl.arange(0, ROWS)
    row = first + pair // GROUP
    head = kv_head * GROUP + pair % GROUP
    is_row = row < last
    cached = tl.load(context + sequence)
    position = cached + row - begin
    least = cached + first - begin
    q = load_rows(qkv, row, head, is_row, row_stride, ELEMENT, HEAD_DIM, WIDTH)
    _, total, mixed = mix_keys(
        q, position, least, first_visible(least, WINDOW), cached + last - begin, data, scales,
        blocks + tl.load(block_start + sequence), tl.load(first_block + sequence),
        block_stride, layer_offset + kv_head * head_stride, value_offset, scale, soft_cap,
        ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, WINDOW, CODES, HAS_CAP,
    )  # fmt: skip
    store_rows(out, row, head, is_row, out_stride, total, mixed, HEAD_DIM, WIDTH)
