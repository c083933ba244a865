"""What all attention kernels share: one tile of keys, and how tiles and segments are added.

Keys are cut at absolute positions: tiles of 64, segments of 256. Within a segment tiles are added
in ascending order to a running sum, and segments in ascending order to the result; every kernel
goes through `mix_keys` or `merge`, so that a row has the same bits in all of them. What makes the
bits independent of the shape of a program (rows, warps, where a sequence is cut):

* Weights are 2^(s − m) with an integer m: a change of m multiplies by a power of two, exactly.
* Maxima do not depend on their order. The sum of a tile's weights is taken in integers (`_summed`),
  so neither does it. Products run along keys and along a head's elements in the tensor core's own
  order, the same in all kernels if the instruction for 16 and for 64 rows adds in the same way
  (tests/gpu shows it).
* Launchers switch off that the compiler fuses products and sums (`enable_fp_fusion`).

Rows of a program are (row, query head) pairs of one kv head. `mixed` [rows, head_dim] and `total`
[rows] are relative to 2^top.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
import triton
import triton.language as tl

from hearth.kernels.triton.kv_codes import numbers_of

TILE_KEYS = 64
SEGMENT_KEYS = 256

_TILE = tl.constexpr(TILE_KEYS)
_LOWEST = tl.constexpr(-1.0e30)  # a top below that of every visible key; finite: −∞ − −∞ is NaN
_LOG2_E = tl.constexpr(1.4426950408889634)
_UNIT = tl.constexpr(2.0**-23)


@triton.jit
def nothing(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """(top, total, mixed) of no key at all."""
    top = tl.full([ROWS], _LOWEST, tl.float32)
    return top, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def power_of_two(n):
    """2^n of whole numbers n ≤ 0, exactly, from its bits; 0 below −126."""
    exponent = tl.maximum(n, -127.0).to(tl.int32) + 127
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def merge(top, total, mixed, own_top, own_total, own_mixed):
    """Adds a later segment; its sums are the second operand."""
    new_top = tl.maximum(top, own_top)
    old, own = power_of_two(top - new_top), power_of_two(own_top - new_top)
    total = total * old + own_total * own
    mixed = mixed * old[:, None] + own_mixed * own[:, None]
    return new_top, total, mixed


@triton.jit
def _summed(weights, unit):
    """Sums [rows, keys] of weights between 0 and `unit` [rows], a power of two, over the keys.

    In integers, so that no order of the keys gives other bits: added to `unit`, a weight lies in
    the last bits of a float32, in steps of 2^−23 · unit (the spacing of a float32 there).
    """
    steps = (weights + unit[:, None]).to(tl.int32, bitcast=True)
    steps -= unit.to(tl.int32, bitcast=True)[:, None]
    return tl.sum(steps, 1).to(tl.float32) * (unit * _UNIT)


@triton.jit
def add_tile(
    q, keys, values, key_scales, value_scales, visible, scale, soft_cap, top, total, mixed,
    IS_CODED: tl.constexpr, SCALES_WEIGHTS: tl.constexpr, HAS_CAP: tl.constexpr,
    IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a tile of keys [keys, width] and values to rows q [rows, width].

    `visible` [rows, keys] is the mask where it `IS_MASKED`; without, every row sees every key.

    Scores are scale · q · key, and c · tanh(score / c) with a soft cap c. Weights are rounded to
    the type of q, and `total` is that of the rounded ones. With `SCALES_WEIGHTS` a weight is first
    multiplied by the scale of its value, and `total` is that of the weights alone; see
    `Attend.rounded`.
    """
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if IS_CODED:
        scores = scores * key_scales[None, :]
    scores = scores * scale
    if HAS_CAP:
        # tanh(x) = (1 − e) / (1 + e) with e = exp(−2 |x|), and the sign of x
        shrunk = tl.exp2(tl.abs(scores) * (-2.0 * _LOG2_E / soft_cap))
        capped = soft_cap * ((1.0 - shrunk) / (1.0 + shrunk))
        scores = tl.where(scores < 0, -capped, capped)
    scores = scores * _LOG2_E
    if IS_MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    tile_top = tl.maximum(tl.ceil(tl.max(scores, 1)), _LOWEST)
    new_top = tl.maximum(top, tile_top)
    weights = tl.exp2(scores - new_top[:, None])
    # Of a tile far below the top, sums would vanish: they are counted in units of its own top.
    unit = power_of_two(tl.maximum(tile_top - new_top, -100.0))
    if SCALES_WEIGHTS:
        own_total = _summed(weights, unit)
        factors = (weights * value_scales[None, :]).to(q.dtype)
    else:
        factors = weights.to(q.dtype)
        own_total = _summed(factors.to(tl.float32), unit)
    decay = power_of_two(top - new_top)
    total = total * decay + own_total
    mixed = tl.dot(factors, values, mixed * decay[:, None], input_precision="ieee")
    return new_top, total, mixed


@triton.jit
def _place(
    blocks, first_block, start, block_stride, head_offset, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """Where a tile's keys lie: (offset of the head in its block, index in the block).

    A tile that fits into a block lies in one piece, and its block is looked up once.
    """
    if BLOCK_SIZE >= _TILE:
        block = tl.load(blocks + (start // BLOCK_SIZE - first_block)).to(tl.int64)
        return block * block_stride + head_offset, start % BLOCK_SIZE + tl.arange(0, _TILE)
    else:
        key = start + tl.arange(0, _TILE)
        # Keys before the first listed block are hidden by the window.
        listed = tl.maximum(key // BLOCK_SIZE - first_block, 0)
        block = tl.load(blocks + listed).to(tl.int64)
        return block * block_stride + head_offset, key % BLOCK_SIZE


@triton.jit
def mix_keys(
    q, position, least_position, first_key, last_key, data, scales, blocks, first_block,
    block_stride, head_offset, value_offset, scale, soft_cap,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, CODES: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """Rows q [ROWS, WIDTH] at `position` [ROWS] over keys first_key … last_key − 1 of a sequence.

    `first_key` is a multiple of the tile, `least_position` that of the first row. `blocks` points
    to the sequence's list. Loads nothing at or behind `last_key`. Returns (top, total, mixed).
    """
    top, total, mixed = nothing(ROWS, WIDTH)
    own_top, own_total, own_mixed = nothing(ROWS, WIDTH)
    all_see = first_key
    if WINDOW == 0:  # tiles before this key are seen by every row, and need no mask
        all_see = tl.maximum(tl.minimum(least_position + 1, last_key) // _TILE * _TILE, first_key)
        top, total, mixed, own_top, own_total, own_mixed = _add_keys(
            q, position, first_key, all_see, data, scales, blocks, first_block, block_stride,
            head_offset, value_offset, scale, soft_cap,
            top, total, mixed, own_top, own_total, own_mixed,
            ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, WINDOW, CODES, HAS_CAP, False,
        )  # fmt: skip
    top, total, mixed, own_top, own_total, own_mixed = _add_keys(
        q, position, all_see, last_key, data, scales, blocks, first_block, block_stride,
        head_offset, value_offset, scale, soft_cap,
        top, total, mixed, own_top, own_total, own_mixed,
        ROWS, HEAD_DIM, WIDTH, BLOCK_SIZE, WINDOW, CODES, HAS_CAP, True,
    )  # fmt: skip
    return merge(top, total, mixed, own_top, own_total, own_mixed)


@triton.jit
def _add_keys(
    q, position, first_key, last_key, data, scales, blocks, first_block, block_stride,
    head_offset, value_offset, scale, soft_cap, top, total, mixed, own_top, own_total, own_mixed,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, CODES: tl.constexpr, HAS_CAP: tl.constexpr, IS_MASKED: tl.constexpr,
    TILE: tl.constexpr = TILE_KEYS, SEGMENT: tl.constexpr = SEGMENT_KEYS,
):  # fmt: skip
    """The tiles from `first_key` on; `own_…` are the sums of the segment at hand."""
    column = tl.arange(0, WIDTH)
    # float16 holds a value better than a weight times its scale, which may be tiny.
    SCALES_WEIGHTS: tl.constexpr = CODES != 0 and q.dtype != tl.float16
    for start in range(first_key, last_key, TILE):
        if start % SEGMENT == 0:
            top, total, mixed = merge(top, total, mixed, own_top, own_total, own_mixed)
            own_top, own_total, own_mixed = nothing(ROWS, WIDTH)
        key = start + tl.arange(0, TILE)
        base, place = _place(blocks, first_block, start, block_stride, head_offset, BLOCK_SIZE)
        is_there = tl.full([TILE], 1, tl.int1)
        visible = is_there[None, :]
        if IS_MASKED:
            is_there = key < last_key
            if BLOCK_SIZE < TILE:
                is_there = is_there & (key >= first_block * BLOCK_SIZE)
            visible = key[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        there = is_there[:, None] & (column < HEAD_DIM)[None, :]
        offsets = (base + place * HEAD_DIM)[:, None] + column[None, :]
        keys = tl.load(data + offsets, mask=there, other=0)
        values = tl.load(data + value_offset + offsets, mask=there, other=0)
        keys, values = numbers_of(keys, q.dtype, CODES), numbers_of(values, q.dtype, CODES)
        if CODES != 0:
            at = (base + BLOCK_SIZE * HEAD_DIM) // 2 + place
            key_scales = tl.load(scales + at, mask=is_there, other=0).to(tl.float32)
            value_at = at + value_offset // 2
            value_scales = tl.load(scales + value_at, mask=is_there, other=0).to(tl.float32)
            if not SCALES_WEIGHTS:
                values = (values.to(tl.float32) * value_scales[:, None]).to(q.dtype)
        else:
            key_scales = key  # not read
            value_scales = key
        own_top, own_total, own_mixed = add_tile(
            q, keys, values, key_scales, value_scales, visible, scale, soft_cap,
            own_top, own_total, own_mixed, CODES != 0, SCALES_WEIGHTS, HAS_CAP, IS_MASKED,
        )  # fmt: skip
    return top, total, mixed, own_top, own_total, own_mixed


@triton.jit
def first_visible(position, WINDOW: tl.constexpr):
    """The first key of the tile that holds the first key a row sees."""
    if WINDOW > 0:
        return tl.maximum(position - WINDOW + 1, 0) // _TILE * _TILE
    else:
        return 0


@triton.jit
def load_rows(
    qkv, row, head, is_row, row_stride, element: tl.constexpr, HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Heads `head` [n] of rows `row` [n], [n, WIDTH], zero where not `is_row`."""
    column = tl.arange(0, WIDTH)
    there = is_row[:, None] & (column < HEAD_DIM)[None, :]
    offsets = row.to(tl.int64) * row_stride + head * HEAD_DIM
    return tl.load(qkv + offsets[:, None] + column[None, :], mask=there, other=0).to(element)


@triton.jit
def store_rows(
    out, row, head, is_row, row_stride, total, mixed, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Weighted values divided by the sum of their weights, to heads `head` of rows `row`."""
    column = tl.arange(0, WIDTH)
    there = is_row[:, None] & (column < HEAD_DIM)[None, :]
    offsets = row.to(tl.int64) * row_stride + head * HEAD_DIM
    total = tl.where(total > 0, total, 1.0)  # rows that are not stored may see no key
    mean = mixed * tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)[:, None]
    where = out + offsets[:, None] + column[None, :]
    tl.store(where, mean.to(out.dtype.element_ty), mask=there)
