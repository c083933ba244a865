"""Linear layers: out = x · weightᵀ (+ bias), float32 sums in an order that the weight's shape sets.

Dense weights are multiplied here, codes in `linear_codes`; `tiles` says how sums are cut. A row of
the output depends on its own row of x alone: not on the number of rows, nor on the others.
Products of bfloat16 and of float16 are exact in float32; where x and the weight are of different
types, or one is float32, both become float32 (slow: for small matrices and tests).
"""

# Kernels have types of their own, and as many arguments as tensors and strides need.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: PLR0913, PLR0917
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hearth.core.errors import KernelError
from hearth.core.spec import Activation
from hearth.kernels.triton import tiles
from hearth.kernels.triton.layout import (
    CodedMatrix,
    DenseMatrix,
    Matrix,
    k_segments,
    segment_columns,
)
from hearth.kernels.triton.linear_codes import codes_tile, launch_codes
from hearth.kernels.triton.tiles import (
    Extras,
    Tiling,
    WeightTile,
    finish,
    num_rows,
    place,
    scratch_floats,
)

__all__ = ["gated_linear", "k_segments", "linear", "scratch_floats"]

_BLOCK_COLUMNS = 64


@triton.jit(do_not_specialize=["num_tokens"])
def _dense_kernel(
    x, weight, bias, out, scratch, counters, num_tokens, rows, cols, segment_blocks,
    x_stride, weight_stride, out_stride,
    APART: tl.constexpr, COUNTED: tl.constexpr, SPLIT: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    first_output, row, counts, token = place(rows, num_tokens, BLOCK_R, BLOCK_T, KIND >= 0)
    column = tl.arange(0, BLOCK_K)
    # Rows and tokens behind the last are computed from the last, and not stored.
    left = weight + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * weight_stride
    right = x + tl.minimum(token, num_tokens - 1).to(tl.int64)[None, :] * x_stride
    left += column[None, :]
    right += column[:, None]
    first, last = 0, tl.cdiv(cols, BLOCK_K)
    if APART:
        first = tl.program_id(1) * segment_blocks
        last = tl.minimum(first + segment_blocks, last)
    total = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    sums = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    for block in range(first, last):
        start = block * BLOCK_K
        if EVEN:
            a, b = tl.load(left + start), tl.load(right + start)
        else:
            inside = column < cols - start
            a = tl.load(left + start, mask=inside[None, :], other=0.0)
            b = tl.load(right + start, mask=inside[:, None], other=0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
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


def linear(
    x: Tensor,
    weight: Matrix,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    scratch: Tensor | None = None,
    counters: Tensor | None = None,
) -> None:
    """out[t] = weight · x[t] (+ bias).

    `x` [T, K] and `out` [T, N], each bfloat16, float16 or float32, elements of a row contiguous;
    `weight` of N rows (a padded dense one may have more) and K columns; `bias` [N] float32.
    `scratch`: float32, of `scratch_floats` for the most tokens, and `counters`: int32 zeros,
    `tiles.NUM_COUNTERS`; each used by one launch at a time, the counters are zeros again behind it.
    Without scratch the same result takes longer where tokens are few, without counters it takes a
    second launch. T = 0 does nothing. Raises KernelError when shapes or types do not fit.
    """
    extras = Extras(bias, scratch, counters)
    _check(x, weight, out, extras)
    _run(x, weight, out, extras)


def gated_linear(
    x: Tensor,
    weight: Matrix,
    out: Tensor,
    activation: Activation,
    *,
    bias: Tensor | None = None,
    scratch: Tensor | None = None,
    counters: Tensor | None = None,
) -> None:
    """out[t] = act(g[t]) · u[t] where g, u are the halves of weight · x[t] (+ bias), in one launch.

    As `linear` and then `rows.gate`, bit for bit where what lies between has the type of `out`:
    g and u are rounded to it. `weight` has 2 N rows for `out` [T, N], without padding between its
    halves. Scratch is used together with counters only.
    """
    extras = Extras(bias, scratch if counters is not None else None, counters, activation)
    _check(x, weight, out, extras)
    _run(x, weight, out, extras)


def _run(x: Tensor, weight: Matrix, out: Tensor, extras: Extras) -> None:
    (tokens, cols), rows = x.shape, tiles.num_rows(out, extras)
    if not tokens:
        return
    tile = codes_tile(weight) if isinstance(weight, CodedMatrix) else _dense_tile(x, weight.data)
    card, may_split = tiles.card_of(x.device), extras.scratch is not None
    tiling = tiles.choose_tiling(tokens, rows, cols, tile, card, may_split=may_split)
    if tiling.apart:
        tiles.check_scratch(extras, tokens, rows, cols)
    launch(x, weight, out, extras, tiling)


def launch(x: Tensor, weight: Matrix, out: Tensor, extras: Extras, tiling: Tiling) -> None:
    """`linear` with tiles of one's own choice, unchecked."""
    if isinstance(weight, CodedMatrix):
        launch_codes(x, weight, out, extras, tiling)
    else:
        _launch_dense(x, weight.data, out, extras, tiling)
    if tiling.apart and extras.counters is None and extras.scratch is not None:
        segments = k_segments(out.shape[1], x.shape[1])
        tiles.add_segments(extras.scratch, extras.bias, out, segments)


def _dense_tile(x: Tensor, weight: Tensor) -> WeightTile:
    many, whole = (128, 256) if x.element_size() == weight.element_size() == 2 else (64, 64)
    return WeightTile(_BLOCK_COLUMNS, 8 * weight.element_size(), x.element_size(), many, whole)


def _launch_dense(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    extras: Extras,
    tiling: Tiling,
) -> None:
    (tokens, cols), rows = x.shape, num_rows(out, extras)
    bias, scratch, counters = extras.bias, extras.scratch, extras.counters
    segments = k_segments(rows, cols)
    programs = tiling.num_programs(tokens, rows, extras)
    _dense_kernel[(programs, segments if tiling.apart else 1)](
        x, weight, out if bias is None else bias, out, out if scratch is None else scratch,
        out if counters is None else counters,
        tokens, rows, cols, segment_columns(rows, cols) // _BLOCK_COLUMNS,
        x.stride(0), weight.stride(0), out.stride(0),
        APART=tiling.apart, COUNTED=counters is not None, SPLIT=segments > 1,
        HAS_BIAS=bias is not None,
        EVEN=cols % _BLOCK_COLUMNS == 0, WIDE=x.dtype != weight.dtype or x.dtype == torch.float32,
        BLOCK_R=tiling.block_rows, BLOCK_T=tiling.block_tokens, BLOCK_K=_BLOCK_COLUMNS,
        KIND=extras.kind, num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip


def _check(x: Tensor, weight: Matrix, out: Tensor, extras: Extras) -> None:
    """Raises KernelError with what does not fit and what would."""
    if isinstance(weight, CodedMatrix):
        stored, cols = int(weight.scales.shape[1]), weight.cols
        if weight.bits not in {4, 8} or weight.group_size % 32:
            raise KernelError(
                f"codes of {weight.bits} bits in groups of {weight.group_size}; permitted: 4 or 8 "
                "bits, groups of a multiple of 32"
            )
    else:
        stored, cols = weight.data.shape
    rows, bias = tiles.num_rows(out, extras), extras.bias
    fits = rows <= stored if isinstance(weight, DenseMatrix) else rows == stored
    if x.shape != (len(out), cols) or not fits or (bias is not None and bias.shape != (rows,)):
        raise KernelError(
            f"x {tuple(x.shape)}, weight {stored} × {cols}, out {tuple(out.shape)}, bias "
            f"{None if bias is None else tuple(bias.shape)} do not fit",
            hint="x [T, K], weight [N, K], out [T, N], bias [N]; half of N where out is gated",
        )
    for name, tensor in (("x", x), ("out", out)):
        if tensor.dtype not in tiles.FLOAT_TYPES or (len(tensor) and tensor.stride(1) != 1):
            raise KernelError(
                f"{name} is {tensor.dtype} with strides {tensor.stride()}; permitted: bfloat16, "
                "float16 or float32, elements of a row contiguous"
            )
