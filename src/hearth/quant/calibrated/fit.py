"""Scales and zero points of groups of weights, and the codes that they give; in torch.

A weight is scale · (code − zero), as in `kernels/packing.CodeRows`. Scales are values that bfloat16
holds. The search is that of the kernels (`csrc/kernels_fit.h`) with more candidates and with a
weight for each column's error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of 4-bit codes: what the largest value of a group becomes is around 8, of ranges how much is kept.
_INVERSES = tuple(8.0 + 0.25 * step for step in (0, *range(-6, 0), *range(1, 9)))
_SHRINKS = tuple(1.0 - 0.02 * step for step in range(18))
_AT_ONCE = 1 << 16  # weights that are searched at a time: 256 KiB, and as much for their codes
_LEAST = 1e-35  # of a group's magnitude; below, it is all zeros (as in the kernels)


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix becomes codes of 4 or 8 bits; `group_size` columns share a scale."""

    bits: int
    group_size: int
    symmetric: bool = True

    @property
    def middle(self) -> int:
        """The code of zero where there are no zero points."""
        return 1 << self.bits - 1

    @property
    def lowest(self) -> int:
        """The least code: 8 bits around zero reach from −127 to 127."""
        return 1 if self.symmetric and self.bits == 8 else 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(slots=True)
class Grid:
    """`scales` and `zeros` [rows, groups] float32; zeros are whole numbers."""

    scales: Tensor
    zeros: Tensor


def codes_of(values: Tensor, scales: Tensor, zeros: Tensor, form: Form) -> Tensor:
    """The nearest codes, as floats; `scales` and `zeros` broadcast to `values`."""
    inverse = torch.where(scales != 0, 1.0 / scales, torch.zeros_like(scales))
    return (torch.round(values * inverse) + zeros).clamp_(form.lowest, form.highest)


def bfloat16(values: Tensor) -> Tensor:
    """The nearest values that bfloat16 holds, in float32."""
    return values.to(torch.bfloat16).float()


def nearest(weight: Tensor, grid: Grid, form: Form) -> Tensor:
    """Codes of a whole matrix [rows, cols] as uint8."""
    grouped = weight.reshape(len(weight), -1, form.group_size)
    codes = codes_of(grouped, grid.scales[..., None], grid.zeros[..., None], form)
    return codes.flatten(1).to(torch.uint8)


def values_of(codes: Tensor, grid: Grid, form: Form) -> Tensor:
    """What codes [rows, cols] stand for; exact in float32."""
    grouped = codes.float().reshape(len(codes), -1, form.group_size)
    values: Tensor = (grouped - grid.zeros[..., None]) * grid.scales[..., None]
    return values.flatten(1)


def search(weight: Tensor, form: Form, importance: Tensor | None = None) -> Grid:
    """The grid of least squared error for groups `weight` [rows, groups, group_size].

    `importance` [groups, group_size]: factors of the squares, all positive; None: all alike.
    """
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    parts = [_searched(part, form, importance) for part in torch.split(weight, rows)]
    return Grid(torch.cat([p.scales for p in parts]), torch.cat([p.zeros for p in parts]))


def _searched(weight: Tensor, form: Form, importance: Tensor | None) -> Grid:
    """`search` of rows that fit into the processor's cache."""
    if not form.symmetric:
        return _with_zeros(weight, form, importance)
    low, high = weight.amin(-1), weight.amax(-1)
    most = torch.where(-low > high, low, high)
    zeros = torch.full_like(most, form.middle)
    is_zero = most.abs() < _LEAST
    safe = torch.where(is_zero, torch.ones_like(most), most)
    if form.bits == 8:
        scales = bfloat16(safe.abs() / 127.0)
        return Grid(torch.where(is_zero, torch.zeros_like(scales), scales), zeros)
    best = gain = None
    weighted = weight if importance is None else weight * importance
    for inverse in _INVERSES:
        codes = (weight * (-inverse / safe)[..., None]).round_().clamp_(-8, 7)
        products = (codes * weighted).sum(-1)
        codes.square_()
        squares = (codes if importance is None else codes.mul_(importance)).sum(-1)
        # With the best scale for its codes a fit takes products² / squares off the error.
        off = products.square() / squares.clamp_min(_LEAST)
        scale = products / squares.clamp_min(_LEAST)
        if best is None or gain is None:
            best, gain = scale, off
        else:
            best = torch.where(off > gain, scale, best)
            gain = torch.maximum(off, gain)
    assert best is not None
    return Grid(torch.where(is_zero, torch.zeros_like(best), bfloat16(best)), zeros)


def _with_zeros(weight: Tensor, form: Form, importance: Tensor | None) -> Grid:
    """Ranges that hold zero, from the whole one on to narrower ones."""
    low, high = weight.amin(-1).clamp_max(0), weight.amax(-1).clamp_min(0)
    span = high - low
    is_zero = span < _LEAST
    span = torch.where(is_zero, torch.ones_like(span), span)
    best: Grid | None = None
    least = torch.zeros_like(span)
    for shrink in _SHRINKS if form.bits == 4 else _SHRINKS[:1]:
        scale = bfloat16(span * (shrink / form.highest))
        zero = torch.round(-low * shrink / scale).clamp_(0, form.highest)
        codes = codes_of(weight, scale[..., None], zero[..., None], form)
        error = ((codes - zero[..., None]) * scale[..., None] - weight).square_()
        total = (error if importance is None else error * importance).sum(-1)
        if best is None:
            best, least = Grid(scale, zero), total
            continue
        is_better = total < least
        best.scales = torch.where(is_better, scale, best.scales)
        best.zeros = torch.where(is_better, zero, best.zeros)
        least = torch.minimum(total, least)
    assert best is not None
    return Grid(torch.where(is_zero, torch.zeros_like(best.scales), best.scales), best.zeros)
