"""Decode attention with split keys: segments go to programs, and the last of them adds.

A sequence's results by segment lie in scratch memory, segment by segment behind each other:
`mixed` [slots, heads, WIDTH], then `top` and `total` [slots, heads, 2]. Where the slots of a
sequence begin follows from the block tables, whose lists are at least as long as the keys: no
table of its own, no search. A sequence that finds no room, or has one segment only, is not split:
its first program takes all of its keys. Where there are no counters, a second kernel adds the
parts. All give the bits of `attention_rows`.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
import triton
import triton.language as tl

from hearth.kernels.triton.attention_tiles import (
    SEGMENT_KEYS,
    first_visible,
    load_rows,
    merge,
    mix_keys,
    nothing,
    store_rows,
)

_SEGMENT = tl.constexpr(SEGMENT_KEYS)


@triton.jit
def _segments(
    sequence, position, block_start, num_slots, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr
):
    """Returns (first segment, how many, the first's slot, whether it is split) of a sequence.

    A list of n tokens touches at most n / SEGMENT + 2 segments, rounded down.
    """
    first = first_visible(position, WINDOW) // _SEGMENT
    count = position // _SEGMENT + 1 - first
    listed = tl.load(block_start + sequence) - tl.load(block_start)
    slot = (listed.to(tl.int64) * BLOCK_SIZE // _SEGMENT + 2 * sequence).to(tl.int64)
    return first, count, slot, (count > 1) & (slot + count <= num_slots)


@triton.jit
def attend_split_kernel(
    qkv, out, data, scales, scratch, counters, row_start, context, blocks, block_start, first_block,
    num_slots, row_stride, out_stride, block_stride, layer_offset, head_stride, value_offset,
    scale, soft_cap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    ELEMENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CODES: tl.constexpr,
    HAS_CAP: tl.constexpr, RUNS: tl.constexpr, ROWS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """Grid: (sequences, kv heads, RUNS). Program r takes every RUNS-th segment from r on.

    COUNTED: the last program of a (sequence, kv head) adds the parts, in order as ever, and puts
    its counter back to zero.
    """
    sequence, kv_head, run = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(row_start + sequence)
    position = tl.load(context + sequence)
    if (tl.load(row_start + sequence + 1) <= begin) | (position < 0):
        return
    first, count, slot, is_split = _segments(
        sequence, position, block_start, num_slots, BLOCK_SIZE, WINDOW
    )
    if run >= tl.where(is_split, count, 1):
        return
    pair = tl.arange(0, ROWS)
    head = kv_head * GROUP + pair
    is_row = pair < GROUP
    row = begin + pair * 0
    q = load_rows(qkv, row, head, is_row, row_stride, ELEMENT, HEAD_DIM, WIDTH)
    listed, first_listed = tl.load(block_start + sequence), tl.load(first_block + sequence)
    first_key = first_visible(position, WINDOW)
    # One turn over all keys where there is no room for parts.
    step = tl.where(is_split, RUNS, count)
    length = tl.where(is_split, 1, count) * _SEGMENT
    for index in range(run, count, step):
        start = (first + index) * _SEGMENT
        top, total, mixed = mix_keys(
            q, position + pair * 0, position, tl.maximum(start, first_key),
            tl.minimum(start + length, position + 1), data, scales, blocks + listed, first_listed,
            block_stride, layer_offset + kv_head * head_stride, value_offset, scale, soft_cap,
            ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, WINDOW, CODES, HAS_CAP,
        )  # fmt: skip
        if is_split:
            _store_part(
                scratch, slot + index, num_slots, head, is_row, top, total, mixed,
                KV_HEADS * GROUP, WIDTH,
            )  # fmt: skip
        else:
            store_rows(out, row, head, is_row, out_stride, total, mixed, HEAD_DIM, WIDTH)
    if COUNTED:  # noqa: SIM102 -- decided by the compiler, the next one by the card
        if is_split:
            # Every thread's part is stored before one of them counts (release), and what others
            # stored is there when all of them have been counted (acquire).
            tl.debug_barrier()
            counter = counters + sequence * KV_HEADS + kv_head
            counted = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
            if counted == tl.minimum(count, RUNS) - 1:
                top, total, mixed = nothing(ROWS, WIDTH)
                for index in range(count):
                    top, total, mixed = _add_part(
                        scratch, slot + index, num_slots, head, is_row, top, total, mixed,
                        KV_HEADS * GROUP, WIDTH,
                    )  # fmt: skip
                store_rows(out, row, head, is_row, out_stride, total, mixed, HEAD_DIM, WIDTH)
                tl.store(counter, 0)


@triton.jit
def _store_part(
    scratch, slot, num_slots, head, is_row, top, total, mixed, HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    at = slot * HEADS + head
    column = tl.arange(0, WIDTH)
    tl.store(scratch + at[:, None] * WIDTH + column[None, :], mixed, mask=is_row[:, None])
    sums = scratch + num_slots.to(tl.int64) * HEADS * WIDTH + at * 2
    tl.store(sums, top, mask=is_row)
    tl.store(sums + 1, total, mask=is_row)


@triton.jit
def _add_part(
    scratch, slot, num_slots, head, is_row, top, total, mixed, HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds a stored part; past the L1 cache, which does not see other multiprocessors' stores."""
    at = slot * HEADS + head
    where = scratch + at[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    sums = scratch + num_slots.to(tl.int64) * HEADS * WIDTH + at * 2
    own_mixed = tl.load(where, mask=is_row[:, None], other=0.0, cache_modifier=".cg")
    own_top = tl.load(sums, mask=is_row, other=0.0, cache_modifier=".cg")
    own_total = tl.load(sums + 1, mask=is_row, other=0.0, cache_modifier=".cg")
    return merge(top, total, mixed, own_top, own_total, own_mixed)


@triton.jit
def merge_kernel(
    out, scratch, row_start, context, block_start, num_slots, out_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Grid: (sequences, heads). Adds the parts of a row's head in ascending order."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    begin = tl.load(row_start + sequence)
    position = tl.load(context + sequence)
    if (tl.load(row_start + sequence + 1) <= begin) | (position < 0):
        return
    _, count, slot, is_split = _segments(
        sequence, position, block_start, num_slots, BLOCK_SIZE, WINDOW
    )
    if not is_split:
        return
    one = tl.arange(0, 1)
    top, total, mixed = nothing(1, WIDTH)
    # Unrolled, so that the loads of several parts are under way at once.
    for index in tl.range(0, count, loop_unroll_factor=4):
        top, total, mixed = _add_part(
            scratch, slot + index, num_slots, head + one, one == 0, top, total, mixed, HEADS, WIDTH
        )
    store_rows(out, begin + one, head + one, one == 0, out_stride, total, mixed, HEAD_DIM, WIDTH)
