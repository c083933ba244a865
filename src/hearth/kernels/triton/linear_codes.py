"""Linear layers over codes: 4 bits, 8 bits, FP8; a weight is scale · (code − zero point).

Code − zero point is an integer of at most eight bits, and an FP8 number has four significant ones:
bfloat16 and float16 hold both exactly. They are multiplied with x as it is, summed in float32 over
a unit of columns (what groups and blocks have in common: 32, 64 or 128), and the sum is multiplied
by its group's scale in float32. So nothing is rounded that float32 sums would not round; weights
that are multiplied by their scale first, and rounded to bfloat16, would lose up to 2⁻⁹ each.

A 4-bit code becomes a float without a conversion: or'ed into the fraction of 2²³ where it lies,
then one fused multiply-add takes it down and subtracts 2²³ and the zero point. FP8 is moved to
where float32 has exponent and fraction, then multiplied by 2¹²⁰, which is the difference of the
exponents' biases and is right for subnormal numbers too; the code that is no number counts as 480.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from hearth.kernels.triton.layout import BLOCK_COLUMNS, CodedMatrix, k_segments, segment_columns
from hearth.kernels.triton.tiles import Tiling, finish, place

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


@triton.jit(do_not_specialize=["num_tokens"])
def _codes_kernel(
    x, codes, scales, zeros, bias, out, scratch, num_tokens, rows, cols, segment_blocks,
    group_size, x_stride, codes_stride, groups_stride, out_stride,
    BITS: tl.constexpr, FORM: tl.constexpr, UNIT: tl.constexpr, APART: tl.constexpr,
    SPLIT: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    first_row, first_token = place(rows, num_tokens, BLOCK_R, BLOCK_T)
    row, token = first_row + tl.arange(0, BLOCK_R), first_token + tl.arange(0, BLOCK_T)
    # Rows and tokens behind the last are computed from the last, and not stored.
    near_row = tl.minimum(row, rows - 1)
    STEP: tl.constexpr = 16 if BITS == 4 else UNIT  # columns of one product
    column = tl.arange(0, STEP)
    right = x + tl.minimum(token, num_tokens - 1).to(tl.int64)[None, :] * x_stride
    right += column[:, None]
    if BITS == 4:
        left = codes + near_row[:, None]
        word = column[None, :].to(tl.int64)
    else:
        left = codes + near_row.to(tl.int64)[:, None] * codes_stride + column[None, :]
    first, last = 0, tl.cdiv(cols, 128)
    if APART:
        first = tl.program_id(1) * segment_blocks
        last = tl.minimum(first + segment_blocks, last)
    total = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    sums = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    for block in range(first, last):
        if BITS == 4:
            words = tl.load(left + (word + block * 16) * codes_stride)
        for unit in tl.static_range(128 // UNIT):
            start = block * 128 + unit * UNIT
            # Columns behind the last have a group of their own only in a unit that has none.
            group = tl.minimum(start, cols - 1) // group_size * groups_stride
            scale = tl.load(scales + group + near_row).to(tl.float32)
            zero = tl.full((BLOCK_R,), 1 << (BITS - 1), tl.float32)
            if FORM == 1:
                zero = tl.load(zeros + group + near_row).to(tl.float32)
            part = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
            for index in tl.static_range(UNIT // STEP):
                at = start + index * STEP
                if EVEN:
                    b = tl.load(right + at)
                else:
                    b = tl.load(right + at, mask=(column < cols - at)[:, None], other=0.0)
                if BITS == 4:
                    numbers = _four_bits(words, zero, unit * (UNIT // 16) + index)
                else:
                    if EVEN:
                        bytes_ = tl.load(left + at)
                    else:
                        bytes_ = tl.load(left + at, mask=(column < cols - at)[None, :], other=0)
                    numbers = _eight_bits(bytes_, zero, FORM == 2)
                part = tl.dot(numbers.to(b.dtype), b, part, input_precision="ieee")
            sums = tl.fma(tl.broadcast_to(scale[:, None], (BLOCK_R, BLOCK_T)), part, sums)
        if SPLIT and not APART:
            if (block + 1) % segment_blocks == 0:
                total += sums
                sums = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    total += sums
    finish(total, bias, out, scratch, row, token, rows, num_tokens, out_stride, APART, HAS_BIAS)


def launch_codes(
    x: Tensor,
    weight: CodedMatrix,
    out: Tensor,
    bias: Tensor | None,
    scratch: Tensor | None,
    tiling: Tiling,
) -> None:
    """The launch of `linear` for codes; where segments are apart, they remain to be added."""
    (tokens, cols), rows = x.shape, out.shape[1]
    segments = k_segments(rows, cols)
    form = _FLOATS if weight.is_float else _NO_ZEROS if weight.zeros is None else _ZEROS
    programs = triton.cdiv(rows, tiling.block_rows) * triton.cdiv(tokens, tiling.block_tokens)
    _codes_kernel[(programs, segments if tiling.apart else 1)](
        x, weight.codes, weight.scales, weight.codes if weight.zeros is None else weight.zeros,
        out if bias is None else bias, out, out if scratch is None else scratch,
        tokens, rows, cols, segment_columns(rows, cols) // BLOCK_COLUMNS, weight.group_size,
        x.stride(0), weight.codes.stride(0), weight.scales.stride(0), out.stride(0),
        BITS=weight.bits, FORM=form, UNIT=gcd(weight.group_size, BLOCK_COLUMNS),
        APART=tiling.apart, SPLIT=segments > 1, HAS_BIAS=bias is not None,
        EVEN=cols % BLOCK_COLUMNS == 0,
        BLOCK_R=tiling.block_rows, BLOCK_T=tiling.block_tokens,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
