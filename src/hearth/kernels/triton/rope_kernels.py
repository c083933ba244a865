"""Kernels of `rope`: angles, and norm + rotation + KV write of a tile of heads of one row.

A head is taken as three parts: the first and the second elements of its pairs, and what is not
rotated. A thread holds both elements of a pair, so that it may write where it has read.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917, PLR0915
import triton
import triton.language as tl

from hearth.kernels.triton.kv_codes import codes_of, scale_of


@triton.jit
def angles_kernel(
    positions, frequencies, sections, out, num_rows, position_stride, scaling,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid: (rows / ROWS). The product is rounded to float32 before the cosine is taken."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    section = tl.load(sections + column, mask=column < HALF, other=0)
    there = (row < num_rows)[:, None] & (column < HALF)[None, :]
    where = positions + section[None, :] * position_stride + row[:, None]
    position = tl.load(where, mask=there, other=0).to(tl.float32)
    frequency = tl.load(frequencies + column, mask=column < HALF, other=0.0)
    angle = position * frequency[None, :]
    target = out + row[:, None] * (2 * HALF) + column[None, :]
    tl.store(target, tl.cos(angle) * scaling, mask=there)
    tl.store(target + HALF, tl.sin(angle) * scaling, mask=there)


@triton.jit
def rope_write_kernel(
    qkv, angles, slots, data, scales, q_weight, k_weight, row_stride, block_stride,
    layer_offset, head_stride, value_offset, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr,
    HALF_WIDTH: tl.constexpr, REST: tl.constexpr, REST_WIDTH: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr, ROTATES: tl.constexpr, NORMS: tl.constexpr,
    TILE_HEADS: tl.constexpr, Q_TILES: tl.constexpr, KV_TILES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, CODES: tl.constexpr, WRITES: tl.constexpr,
):  # fmt: skip
    """Grid: (rows, tiles of query heads, of key heads and, if it WRITES, of value heads)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    is_query = part < Q_TILES
    is_value = part >= Q_TILES + KV_TILES
    tile = tl.where(is_query, part, (part - Q_TILES) % KV_TILES)
    head = tile * TILE_HEADS + tl.arange(0, TILE_HEADS)
    is_head = head < tl.where(is_query, HEADS, KV_HEADS)
    base = tl.where(is_query, 0, tl.where(is_value, HEADS + KV_HEADS, HEADS))
    heads = qkv + row * row_stride + (base + head)[:, None] * HEAD_DIM

    pair = tl.arange(0, HALF_WIDTH)
    first_at = pair * 2 if IS_INTERLEAVED else pair
    second_at = pair * 2 + 1 if IS_INTERLEAVED else pair + HALF
    rest_at = 2 * HALF + tl.arange(0, REST_WIDTH)
    in_pair = is_head[:, None] & (pair < HALF)[None, :]
    in_rest = is_head[:, None] & (rest_at < HEAD_DIM)[None, :]
    first = tl.load(heads + first_at[None, :], mask=in_pair, other=0.0).to(tl.float32)
    second = tl.load(heads + second_at[None, :], mask=in_pair, other=0.0).to(tl.float32)
    rest = tl.load(heads + rest_at[None, :], mask=in_rest, other=0.0).to(tl.float32)
    tl.debug_barrier()  # all has been read before anything is written

    if not is_value:
        if NORMS:
            squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
            if REST > 0:
                squares += tl.sum(rest * rest, 1)
            factor = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
            first *= factor * _weights(q_weight, k_weight, first_at, pair < HALF, is_query)
            second *= factor * _weights(q_weight, k_weight, second_at, pair < HALF, is_query)
            rest *= factor * _weights(q_weight, k_weight, rest_at, rest_at < HEAD_DIM, is_query)
        if ROTATES:
            cosines = angles + row * (2 * HALF) + pair
            cosine = tl.load(cosines, mask=pair < HALF, other=0.0)[None, :]
            sine = tl.load(cosines + HALF, mask=pair < HALF, other=0.0)[None, :]
            turned = first * cosine - second * sine
            second = second * cosine + first * sine
            first = turned

    if is_query | (not WRITES):
        element = qkv.dtype.element_ty
        tl.store(heads + first_at[None, :], first.to(element), mask=in_pair)
        tl.store(heads + second_at[None, :], second.to(element), mask=in_pair)
        if REST > 0:
            tl.store(heads + rest_at[None, :], rest.to(element), mask=in_rest)
    elif WRITES:
        slot = tl.load(slots + row)
        if slot >= 0:
            place = slot % BLOCK_SIZE
            target = (slot // BLOCK_SIZE).to(tl.int64) * block_stride + layer_offset
            target += tl.where(is_value, value_offset, 0) + head * head_stride
            rows = data + (target + place * HEAD_DIM)[:, None]
            if CODES != 0:
                largest, is_finite = _largest(first, second, rest)
                scale, stored, is_plain = scale_of(largest, is_finite, CODES)
                at = (target + BLOCK_SIZE * HEAD_DIM) // 2 + place
                tl.store(scales + at, stored.to(tl.bfloat16), mask=is_head)
            else:
                scale, is_plain = first, first  # not read
            _store(rows + first_at[None, :], first, in_pair, scale, is_plain, CODES)
            _store(rows + second_at[None, :], second, in_pair, scale, is_plain, CODES)
            if REST > 0:
                _store(rows + rest_at[None, :], rest, in_rest, scale, is_plain, CODES)


@triton.jit
def _largest(first, second, rest):
    """The largest magnitude of each head, and whether all of its elements are finite."""
    largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
    finite = tl.minimum(tl.min(_finite(first), 1), tl.min(_finite(second), 1))
    # Without a rest these are zeros.
    largest = tl.maximum(largest, tl.max(tl.abs(rest), 1))
    return largest, tl.minimum(finite, tl.min(_finite(rest), 1)) != 0


@triton.jit
def _store(where, x, there, scale, is_plain, CODES: tl.constexpr):
    """Floats as the cache has them, or codes."""
    if CODES != 0:
        tl.store(where, codes_of(x, scale, is_plain, CODES), mask=there)
    else:
        tl.store(where, x.to(where.dtype.element_ty), mask=there)


@triton.jit
def _weights(q_weight, k_weight, column, there, is_query):
    """A head norm's weights at `column`, [1, n]."""
    of_queries = tl.load(q_weight + column, mask=there & is_query, other=0.0)
    of_keys = tl.load(k_weight + column, mask=there & (not is_query), other=0.0)
    return tl.where(is_query, of_queries, of_keys)[None, :]


@triton.jit
def _finite(x):
    """1 where x is a finite number, else 0."""
    return (tl.abs(x) < float("inf")).to(tl.int32)
