"""Linear layers over codes: 4 bits, 8 bits, FP8; a weight is scale · (code − zero point).

Code − zero point is an integer of at most eight bits, and an FP8 number has four significant ones:
bfloat16 and float16 hold both exactly. They are multiplied with x as it is, summed in float32 over
a unit of columns (what groups and blocks have in common: 32 to 256), and the sum is multiplied
by its group's scale in float32. So nothing is rounded that float32 sums would not round; weights
that are multiplied by their scale first, and rounded to bfloat16, would lose up to 2⁻⁹ each.

A 4-bit code becomes a float without a conversion: or'ed into the fraction of 2²³ where it lies,
then one fused multiply-add takes it down and subtracts 2²³ and the zero point. FP8 is moved to
where float32 has exponent and fraction, then multiplied by 2¹²⁰, which is the difference of the
exponents' biases and is right for subnormal numbers too; the code that is no number counts as 480.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: C901, PLR0913, PLR0917
from __future__ import annotations

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from hearth.kernels.triton.layout import BLOCK_COLUMNS, CodedMatrix, k_segments, segment_columns
from hearth.kernels.triton.tiles import Extras, Tiling, WeightTile, finish, num_rows, place

_NO_ZEROS, _ZEROS, _FLOATS = 0, 1, 2  # FORM


@triton.jit
def _four_bits(words, zero, INDEX: tl.constexpr):
    """Code − zero point of the columns at place INDEX of each word, in float32."""
    half = words if INDEX < 4 else words >> 16
    step: tl.constexpr = 1 << (INDEX % 4 * 4)
    bits = (half & (15 * step)) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) * (1.0 / step) - (8388608.0 / step + zero)[:, None]


@triton.jit
def _eight_bits(codes, zero, IS_FLOAT: tl.constexpr):
    """Code − zero point, or the FP8 number, in float32."""
    codes = codes.to(tl.int32)
    if IS_FLOAT:
        bits = ((codes & 127) << 20) | ((codes & 128) << 24)
        numbers = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    else:
        bits = codes | 0x4B000000
        numbers = bits.to(tl.float32, bitcast=True) - (8388608.0 + zero)[:, None]
    return numbers


@triton.jit
def _of_group(numbers, start, row, rows, cols, groups_stride, GROUP: tl.constexpr):
    """Scales or zero points, float32 [rows of the tile], of the group that column `start` is in."""
    group = tl.minimum(start, cols - 1) // GROUP * groups_stride
    return tl.load(numbers + group + row, mask=row < rows, other=0).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def _codes_kernel(
    x, codes, scales, zeros, bias, out, scratch, counters, num_tokens, rows, cols, segment_blocks,
    x_stride, codes_stride, groups_stride, out_stride,
    BITS: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr,
    STEP: tl.constexpr, APART: tl.constexpr, COUNTED: tl.constexpr, SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    first_output, row, counts, token = place(rows, num_tokens, BLOCK_R, BLOCK_T, KIND >= 0)
    column = tl.arange(0, STEP)
    # Tokens behind the last are computed from the last, and not stored.
    right = x + tl.minimum(token, num_tokens - 1).to(tl.int64)[None, :] * x_stride
    right += column[:, None]
    if BITS == 4:
        left = codes + row[:, None]
        word = column[None, :].to(tl.int64)
    else:
        left = codes + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * codes_stride
        left += column[None, :]
    first, last = 0, tl.cdiv(cols, BLOCK_K)
    if APART:
        first = tl.program_id(1) * segment_blocks
        last = tl.minimum(first + segment_blocks, last)
    total = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    sums = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    zero = tl.full((BLOCK_R,), 1 << (BITS - 1), tl.float32)
    # Scales are read a unit ahead: unlike what is multiplied, the compiler does not fetch them so.
    next_scale = _of_group(scales, first * BLOCK_K, row, rows, cols, groups_stride, GROUP)
    for block in range(first, last):
        if BITS == 4:
            words = tl.load(
                left + (word + block * 32) * codes_stride, mask=(row < rows)[:, None], other=0
            )
        for unit in tl.static_range(BLOCK_K // UNIT):
            start = block * BLOCK_K + unit * UNIT
            scale = next_scale
            next_scale = _of_group(scales, start + UNIT, row, rows, cols, groups_stride, GROUP)
            if FORM == 1:
                zero = _of_group(zeros, start, row, rows, cols, groups_stride, GROUP)
            part = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
            for index in tl.static_range(UNIT // STEP):
                at = start + index * STEP
                if EVEN:
                    b = tl.load(right + at)
                else:
                    b = tl.load(right + at, mask=(column < cols - at)[:, None], other=0.0)
                if BITS == 4:
                    numbers = _four_bits(words, zero, unit * (UNIT // STEP) + index)
                elif EVEN:
                    numbers = _eight_bits(tl.load(left + at), zero, FORM == 2)
                else:
                    inside = (column < cols - at)[None, :]
                    numbers = _eight_bits(tl.load(left + at, mask=inside, other=0), zero, FORM == 2)
                part = tl.dot(numbers.to(b.dtype), b, part, input_precision="ieee")
            sums = tl.fma(tl.broadcast_to(scale[:, None], (BLOCK_R, BLOCK_T)), part, sums)
        # A condition that a launch knows stands by itself, so that it costs nothing.
        if SPLIT and not APART:  # noqa: SIM102
            if (block + 1) % segment_blocks == 0:
                total += sums
                sums = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    total += sums
    finish(
        total, bias, out, scratch, counters, first_output, row, counts, token, rows, num_tokens,
        out_stride, APART, COUNTED, HAS_BIAS, KIND,
    )  # fmt: skip


def codes_tile(weight: CodedMatrix) -> WeightTile:
    """What a program reads at a time: of 4 bits a block of words, of 8 bits half as much."""
    whole = 64 if weight.bits == 4 else 128
    return WeightTile(_block_columns(weight), weight.bits, 2, 64, whole)


def _block_columns(weight: CodedMatrix) -> int:
    return BLOCK_COLUMNS if weight.bits == 4 else BLOCK_COLUMNS // 2


def launch_codes(
    x: Tensor,
    weight: CodedMatrix,
    out: Tensor,
    extras: Extras,
    tiling: Tiling,
) -> None:
    """The launch of `linear` for codes; where segments are apart, they remain to be added."""
    (tokens, cols), rows = x.shape, num_rows(out, extras)
    bias, scratch, counters = extras.bias, extras.scratch, extras.counters
    segments, block = k_segments(rows, cols), _block_columns(weight)
    unit = gcd(weight.group_size, block)
    # Columns of a product: of 4 bits, what a word's place has; of 8 bits, what registers hold.
    step = 32 if weight.bits == 4 else min(unit, 64)
    form = _FLOATS if weight.is_float else _NO_ZEROS if weight.zeros is None else _ZEROS
    programs = tiling.num_programs(tokens, rows, extras)
    _codes_kernel[(programs, segments if tiling.apart else 1)](
        x, weight.codes, weight.scales, weight.codes if weight.zeros is None else weight.zeros,
        out if bias is None else bias, out, out if scratch is None else scratch,
        out if counters is None else counters,
        tokens, rows, cols, segment_columns(rows, cols) // block,
        x.stride(0), weight.codes.stride(0), weight.scales.stride(0), out.stride(0),
        BITS=weight.bits, FORM=form, GROUP=weight.group_size, UNIT=unit, STEP=step,
        APART=tiling.apart, COUNTED=counters is not None, SPLIT=segments > 1,
        HAS_BIAS=bias is not None, EVEN=cols % block == 0,
        BLOCK_R=tiling.block_rows, BLOCK_T=tiling.block_tokens, BLOCK_K=block,
        KIND=extras.kind, num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
