"""Quantization as the kernels do it, in plain torch: weights to codes, rows to int8.

The rule of `csrc/kernels_fit.h` and of the operation `Quantize`. What is returned are the values
that the codes stand for, since the arithmetic here is float32. Two searches may choose differently
where errors are equal but for rounding; a comparison of kernels takes the codes that they read
(`ReferenceWeights.put_packed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from hearth.core.spec import QuantSpec
from hearth.kernels.e4m3 import LARGEST
from hearth.kernels.packing import RESIDUAL_BELOW, RESIDUAL_STEPS, SCALE_CANDIDATES

LEAST = 1e-35  # a group whose values are all smaller is zero
ROW_LEVELS = 127
_MOST_INVERSE = 3.0e38  # of a row's scale: beyond it the row counts as zero


def rounded_rows(x: torch.Tensor, group_size: int, *, residual: bool = False) -> torch.Tensor:
    """What int8 rows stand for: each group of a row by a scale of its own, [T, width].

    A group with a value that is not finite is NaN. `residual`: a group whose codes are small but
    for a few has what rounding left, too, in steps of 1/254.
    """
    groups = _grouped(x, group_size)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 0, ROW_LEVELS / largest, 0.0)
    inverse = torch.where(inverse < _MOST_INVERSE, inverse, 0.0)
    scaled = groups * inverse
    values = scaled.round()
    if residual:
        left = ((scaled - values) * RESIDUAL_STEPS).round() / RESIDUAL_STEPS
        least = RESIDUAL_BELOW * _grouped(torch.ones(x.shape[-1]), group_size).sum(-1, keepdim=True)
        is_crowded = values.abs().sum(-1, keepdim=True) < least
        values = torch.where(is_crowded, values + left, values)
    values = values * (largest / ROW_LEVELS)
    values = torch.where(largest.isfinite(), values, torch.nan)
    return values.flatten(-2)[..., : x.shape[-1]]


@dataclass(frozen=True)
class FittedCodes:
    """Codes [rows, cols padded to whole groups] uint8; scales float32, zeros uint8 [rows, groups].

    A weight is scale · (code − zero point), or scale · the FP8 number that the code is.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor


def coded_weights(rows: torch.Tensor, quant: QuantSpec) -> FittedCodes:
    """The codes of a weight; scales are not finite where its values are not."""
    fitted = _fit(_grouped(rows.float(), quant.group_size), quant)
    if quant.is_float:
        codes = fitted.steps.to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        codes = (fitted.steps + fitted.zero).nan_to_num().to(torch.uint8)
    zeros = fitted.zero.nan_to_num().to(torch.uint8).expand(fitted.scale.shape)
    return FittedCodes(codes.flatten(-2), fitted.scale.squeeze(-1), zeros.squeeze(-1).contiguous())


def rounded_weights(rows: torch.Tensor, quant: QuantSpec) -> torch.Tensor:
    """What the codes of a weight stand for, [rows, cols]."""
    fitted = _fit(_grouped(rows.float(), quant.group_size), quant)
    values = fitted.steps * fitted.scale
    if quant.is_float:
        values = torch.where(fitted.scale.isfinite(), values, torch.nan)
    return values.flatten(-2)[..., : rows.shape[-1]]


@dataclass(frozen=True)
class _Fitted:
    """A weight is scale · step: integers within [−zero, levels − zero], or FP8 numbers.

    `steps` [rows, groups, group_size]; `scale` and `zero` [rows, groups, 1].
    """

    steps: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def _fit(groups: torch.Tensor, quant: QuantSpec) -> _Fitted:
    if quant.is_float:
        return _as_e4m3(groups)
    return _symmetric(groups, quant.bits) if quant.symmetric else _with_zero(groups, quant.bits)


def _grouped(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """[rows, groups, group_size], zeros behind a row's end."""
    padded = functional.pad(x, (0, -x.shape[-1] % group_size))
    return padded.reshape(*x.shape[:-1], padded.shape[-1] // group_size, group_size)


def _bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Rounded to what a stored scale holds."""
    return x.bfloat16().float()


@dataclass(frozen=True)
class _Range:
    """Codes are clamp(round(x · inverse), low, high); [rows, groups, 1] each."""

    inverse: torch.Tensor
    low: torch.Tensor | float
    high: torch.Tensor | float

    def codes_of(self, x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(
            torch.maximum((x * self.inverse).round(), torch.as_tensor(self.low)),
            torch.as_tensor(self.high),
        )


def _symmetric(groups: torch.Tensor, bits: int) -> _Fitted:
    """The value of largest magnitude gets the code −8; scales around it are tried."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    most = torch.where(-low > high, low, high)
    is_zero = most.abs() < LEAST
    most = torch.where(is_zero, 1.0, most)
    middle = torch.full_like(most, 1 << bits - 1)
    if bits == 8:
        scale = _bfloat16(most.abs() / ROW_LEVELS)
        steps = _Range(1.0 / scale, -ROW_LEVELS, ROW_LEVELS).codes_of(groups)
        return _Fitted(torch.where(is_zero, 0.0, steps), scale, middle)
    best_products = best_squares = torch.zeros_like(most)
    for i in range(SCALE_CANDIDATES + 1):
        step = 0.25 * ((i + 1) // 2) * (1 if i % 2 else -1)
        codes = _Range(-(8.0 + step) / most, -8, 7).codes_of(groups)
        products = (groups * codes).sum(-1, keepdim=True)
        squares = codes.square().sum(-1, keepdim=True)
        is_better = products**2 * best_squares > best_products**2 * squares
        is_better |= best_squares == 0
        best_products = torch.where(is_better, products, best_products)
        best_squares = torch.where(is_better, squares, best_squares)
    scale = torch.where(is_zero, 0.0, _bfloat16(best_products / best_squares))
    steps = _Range(1.0 / scale, -8, 7).codes_of(groups)
    return _Fitted(torch.where(is_zero, 0.0, steps), scale, middle)


def _as_e4m3(groups: torch.Tensor) -> _Fitted:
    """FP8: the largest magnitude becomes 448."""
    most = groups.abs().amax(-1, keepdim=True)
    scale = _bfloat16(torch.where(most < LEAST, 0.0, most / LARGEST))
    steps = torch.where(scale > 0, groups / scale, 0.0).clamp(-LARGEST, LARGEST)
    return _Fitted(steps.to(torch.float8_e4m3fn).float(), scale, torch.zeros_like(scale))


def _with_zero(groups: torch.Tensor, bits: int) -> _Fitted:
    """The range of the values, then narrower ones; the least squared error wins."""
    levels = (1 << bits) - 1
    low = groups.amin(-1, keepdim=True).clamp(max=0.0)
    high = groups.amax(-1, keepdim=True).clamp(min=0.0)
    is_zero = high - low < LEAST
    low = torch.where(is_zero, -1.0, low)
    best = _Fitted(torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low))
    least = torch.full_like(low, torch.inf)
    for i in range(SCALE_CANDIDATES + 1):
        shrink = 1.0 - 0.02 * i
        scale = _bfloat16((high - low) * shrink / levels)
        zero = (-low * shrink / scale).round()
        steps = _Range(1.0 / scale, -zero, levels - zero).codes_of(groups)
        error = (groups - steps * scale).square().sum(-1, keepdim=True)
        is_better = (error < least) | (i == 0)
        best = _Fitted(
            torch.where(is_better, steps, best.steps),
            torch.where(is_better, scale, best.scale),
            torch.where(is_better, zero, best.zero),
        )
        least = torch.where(is_better, error, least)
    parts = (torch.where(is_zero, 0.0, part) for part in (best.steps, best.scale, best.zero))
    return _Fitted(*parts)
