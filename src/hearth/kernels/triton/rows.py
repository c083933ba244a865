"""Kernels that treat each row by itself: embed, norm, gate, activate, select, soft cap.

Arithmetic is float32 whatever rows are stored as. What a row becomes depends on that row alone: a
program takes whole rows (or elements of one), and sums over a row run over tiles whose shape
follows from the width. Tensors are [rows, width], elements of a row contiguous, rows at any stride.
Every function launches on the current stream, allocates nothing and never waits. A kernel is
compiled once for all numbers of rows.
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hearth.core.errors import KernelError
from hearth.core.spec import Activation
from hearth.kernels.triton.layout import CodedMatrix, Matrix

_ELEMENTS = 1024  # of a program that takes a part of a row
# A row of more would not stay in registers; wider models than 16,384 exist only on paper.
_WIDEST_NORM = 32_768
KINDS = {  # as constants of kernels
    Activation.SILU: 0,
    Activation.GELU_TANH: 1,
    Activation.GELU: 2,
    Activation.QUICK_GELU: 3,
}


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(−x)) from an exponential that cannot overflow."""
    power = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, power) / (1.0 + power)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """act(x) in float32; 0.5 (1 + tanh u) is sigmoid(2 u), exactly."""
    if KIND == 0:
        result = x * _sigmoid(x)
    elif KIND == 1:
        result = x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == 2:
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        result = x * _sigmoid(1.702 * x)
    return result


@triton.jit
def _tanh(x):
    """Tanh from an exponential, and from a series near zero, where that cancels (error < 1e-7)."""
    size = tl.abs(x)
    power = tl.exp(-2.0 * size)
    far = (1.0 - power) / (1.0 + power)
    square = tl.minimum(size, 1.0) * tl.minimum(size, 1.0)
    series = -0.05396825396825397 + square * 0.021869488536155203
    series = 0.13333333333333333 + square * series
    near = size * (1.0 + square * (-0.3333333333333333 + square * series))
    result = tl.where(size < 0.3, near, far)
    return tl.where(x < 0, -result, result)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_kernel(
    x, weight, bias, add, out, num_rows, width, eps, x_stride, add_stride, out_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, HAS_ADD: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTERED: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (column < width)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADD:
        values += tl.load(add + row * add_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row * x_stride + column, values, mask=inside)
    if CENTERED:
        mean = tl.sum(values, axis=1) / width
        values = tl.where(inside, values - mean[:, None], 0.0)
    variance = tl.sum(values * values, axis=1) / width
    factor = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(weight + column, mask=column < width, other=0.0)
    result = values * factor[:, None] * scale
    if HAS_BIAS:
        result += tl.load(bias + column, mask=column < width, other=0.0)
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_kernel(
    x, out, width, x_stride, out_stride,
    KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    result = activated(
        tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32), KIND
    )
    if GATED:
        up = tl.load(x + row * x_stride + width + column, mask=inside, other=0.0)
        result *= up.to(tl.float32)
    tl.store(out + row * out_stride + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _soft_cap_kernel(x, cap, width, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    result = cap * _tanh(values / cap)
    tl.store(x + row * x_stride + column, result.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["limit"])
def _copy_kernel(
    x, rows, out, width, limit, x_stride, out_stride, scale,
    TO_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i] = scale · x[rows[i]], zeros where there is no such row; or out[rows[i]] = x[i]."""
    index = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    named = tl.load(rows + index).to(tl.int64)
    is_row = (named >= 0) & (named < limit)
    inside = column < width
    source = index if TO_ROWS else named
    target = named if TO_ROWS else index
    values = tl.load(x + source * x_stride + column, mask=inside & (is_row | TO_ROWS), other=0.0)
    values = values.to(tl.float32) * scale
    written = inside & is_row if TO_ROWS else inside
    tl.store(out + target * out_stride + column, values.to(out.dtype.element_ty), mask=written)


@triton.jit
def _embed_codes_kernel(
    codes, scales, zeros, tokens, out, width, limit, group_size, codes_stride, groups_stride,
    out_stride, scale,
    BITS: tl.constexpr, IS_FLOAT: tl.constexpr, HAS_ZEROS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.load(tokens + tl.program_id(0)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width) & (token >= 0) & (token < limit)
    if BITS == 4:
        word = (column // 256 * 32 + column % 32).to(tl.int64)
        words = tl.load(codes + word * codes_stride + token, mask=inside, other=0)
        code = (words >> (column % 256 // 32 * 4)) & 15
    else:
        code = tl.load(codes + token * codes_stride + column, mask=inside, other=0).to(tl.int32)
    group = (column // group_size).to(tl.int64) * groups_stride + token
    if IS_FLOAT:
        bits = ((code & 127) << 20) | ((code & 128) << 24)
        numbers = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120: the bias
    elif HAS_ZEROS:
        zero = tl.load(zeros + group, mask=inside, other=0).to(tl.int32)
        numbers = (code - zero).to(tl.float32)
    else:
        numbers = (code - (1 << (BITS - 1))).to(tl.float32)
    factor = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    result = tl.where(inside, numbers * factor * scale, 0.0)
    row = out + tl.program_id(0).to(tl.int64) * out_stride
    tl.store(row + column, result.to(out.dtype.element_ty), mask=column < width)


def embed(
    table: Matrix,
    tokens: Tensor,
    out: Tensor,
    scale: float = 1.0,
    feature_rows: Tensor | None = None,
    features: Tensor | None = None,
) -> None:
    """out[t] = scale · table[tokens[t]]; then out[feature_rows[i]] = features[i], unscaled.

    `tokens` [T] int32, `out` [T, H], `feature_rows` [F] int32, `features` [F, H] of any float type.
    A token that the table does not have gives zeros; a feature row outside of `out` (such as −1)
    is skipped.
    """
    count, width = out.shape
    if not count:
        return
    if isinstance(table, CodedMatrix):
        _embed_codes(table, tokens, out, scale)
    else:
        _copy(table.data, tokens, out, scale, to_rows=False)
    if feature_rows is not None and features is not None and len(feature_rows):
        _check_width("features", features, width)
        _copy(features, feature_rows, out, 1.0, to_rows=True)


def select(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[r] = x[rows[r]]; zeros where x has no such row. `rows` [R] int32, `out` [R, W]."""
    _check_width("out", out, x.shape[1])
    if len(rows):
        _copy(x, rows, out, 1.0, to_rows=False)


def norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    centered: bool = False,
) -> None:
    """out[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight (+ bias), x[t] less its mean if `centered`.

    `x` [T, H], `weight` and `bias` [H] float32, `out` [T, H]; with `add` [T, H], x += add comes
    first and is written back. `out` may be `x` where there is no `add`.
    """
    count, width = x.shape
    _check_width("weight", weight[None], width)
    _check_width("out", out, width)
    if width > _WIDEST_NORM:
        raise KernelError(f"norm over {width} elements; permitted: up to {_WIDEST_NORM}")
    if not count:
        return
    block = triton.next_power_of_2(width)
    rows = max(1, _ELEMENTS // block)
    _norm_kernel[(triton.cdiv(count, rows),)](
        x, weight, weight if bias is None else bias, x if add is None else add, out,
        count, width, eps, x.stride(0), 0 if add is None else add.stride(0), out.stride(0),
        ROWS=rows, BLOCK=block, HAS_ADD=add is not None, HAS_BIAS=bias is not None,
        CENTERED=centered, num_warps=min(16, max(4, block // 512)),
    )  # fmt: skip


def gate(x: Tensor, out: Tensor, activation: Activation) -> None:
    """out[t] = act(x[t][:W]) · x[t][W:2·W]; `x` [T, 2 W], `out` [T, W]."""
    _check_width("x", x, 2 * out.shape[1])
    _by_parts(_gate_kernel, out, x, out, out.shape[1], x.stride(0), out.stride(0),
              KIND=KINDS[activation], GATED=True)  # fmt: skip


def activate(x: Tensor, activation: Activation) -> None:
    """x[t] = act(x[t]), in place; `x` [T, W]."""
    _by_parts(_gate_kernel, x, x, x, x.shape[1], x.stride(0), x.stride(0),
              KIND=KINDS[activation], GATED=False)  # fmt: skip


def soft_cap(x: Tensor, cap: float) -> None:
    """x[t] = cap · tanh(x[t] / cap), in place; `x` [T, W]."""
    _by_parts(_soft_cap_kernel, x, x, cap, x.shape[1], x.stride(0))


def _copy(x: Tensor, rows: Tensor, out: Tensor, scale: float, *, to_rows: bool) -> None:
    width = out.shape[1]
    limit = len(out) if to_rows else len(x)
    block = _block(width)
    _copy_kernel[(len(rows), triton.cdiv(width, block))](
        x, rows, out, width, limit, x.stride(0), out.stride(0), scale, TO_ROWS=to_rows, BLOCK=block
    )


def _embed_codes(table: CodedMatrix, tokens: Tensor, out: Tensor, scale: float) -> None:
    width = out.shape[1]
    block = _block(width)
    _embed_codes_kernel[(len(tokens), triton.cdiv(width, block))](
        table.codes, table.scales, table.scales if table.zeros is None else table.zeros,
        tokens, out, width, table.scales.shape[1], table.group_size, table.codes.stride(0),
        table.scales.stride(0), out.stride(0), scale, BITS=table.bits, IS_FLOAT=table.is_float,
        HAS_ZEROS=table.zeros is not None, BLOCK=block,
    )  # fmt: skip


def _by_parts(kernel: Any, shaped: Tensor, *arguments: Any, **constants: Any) -> None:
    """A program for each part of each row of `shaped`."""
    count, width = shaped.shape
    if count and width:
        block = _block(width)
        kernel[(count, triton.cdiv(width, block))](*arguments, BLOCK=block, **constants)


def _block(width: int) -> int:
    return int(min(_ELEMENTS, triton.next_power_of_2(width)))


def _check_width(name: str, tensor: Tensor, width: int) -> None:
    if tensor.shape[1] != width or tensor.stride(1) != 1:
        raise KernelError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}; "
            f"permitted: rows of {width} contiguous elements"
        )
