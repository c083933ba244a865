"""Coordinate descent on the layer's squared output error, from codes that GPTQ has found.

One column's codes, then one group's scale at a time take their best values while all others stay;
no step lets the error grow. (In the spirit of QuantEase, arXiv 2309.01885; the scales are ours.)
Of everything the transpose is kept, [cols, rows]: a column lies in one piece. The slope,
gram · (weight − values)ᵀ, is computed once and follows every change by a product of some columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hearth.quant.calibrated.fit import Grid, bfloat16, codes_of
from hearth.quant.calibrated.gptq import Coded, joined, prepared, rows_of
from hearth.quant.calibrated.parts import one_thread, over_rows

_BLOCK = 128
_FEW = 16  # columns between two products with the rest of a block
SWEEPS = 2


def refined(weight: Tensor, gram: Tensor, coded: Coded, sweeps: int = SWEEPS) -> Coded:
    """Better codes and scales for `weight` [rows, cols], inputs' `gram` [cols, cols].

    With the damping that GPTQ took: it keeps weights near, about which the inputs say nothing.
    """
    gram = prepared(gram)
    gram.diagonal().add_(coded.damping * gram.diagonal().mean())

    def part(rows: slice) -> Coded:
        descent = _Descent(weight[rows], gram, rows_of(coded, rows))
        for sweep in range(sweeps):
            descent.move_codes()
            descent.move_scales(is_last=sweep + 1 == sweeps)
        return descent.coded()

    return joined(over_rows(len(weight), part))


class _Descent:
    """Codes and scales at work. `steps`: codes less zero points."""

    def __init__(self, weight: Tensor, gram: Tensor, coded: Coded) -> None:
        self._gram, self._form, self._damping = gram, coded.form, coded.damping
        self._scales = coded.grid.scales.T.contiguous()  # [groups, rows]
        self._zeros = coded.grid.zeros.T.contiguous()
        self._steps = coded.codes.T.float()
        self._grouped(self._steps).sub_(self._zeros[:, None])
        left = weight.T.contiguous()
        self._grouped(left).addcmul_(self._grouped(self._steps), self._scales[:, None], value=-1)
        self._slope = gram @ left

    def coded(self) -> Coded:
        """What has been found."""
        codes = self._grouped(self._steps).add_(self._zeros[:, None]).flatten(0, 1)
        grid = Grid(self._scales.T.contiguous(), self._zeros.T.contiguous())
        return Coded(codes.to(torch.uint8).T.contiguous(), grid, self._form, self._damping)

    def move_codes(self) -> None:
        """One column after the other to its best codes, in blocks."""
        cols = len(self._steps)
        for begin in range(0, cols, _BLOCK):
            end = min(begin + _BLOCK, cols)
            with one_thread():
                moved = self._move_block(begin, end)
            self._slope.addmm_(self._gram[:, begin:end], moved, alpha=-1)

    def _move_block(self, begin: int, end: int) -> Tensor:
        """By how much its columns have moved, [columns, rows]."""
        local = self._slope[begin:end].clone()
        moved = torch.empty_like(local)
        near = self._gram[begin:end, begin:end]
        diagonal = near.diagonal().tolist()
        for first in range(0, end - begin, _FEW):
            last = min(first + _FEW, end - begin)
            for j in range(first, last):
                self._move_column(begin + j, local[j] / diagonal[j], moved[j])
                local[j + 1 : last].addr_(near[j, j + 1 : last], moved[j], alpha=-1)
            local[last:].addmm_(near[last:, first:last], moved[first:last], alpha=-1)
        return moved

    def _move_column(self, column: int, wanted: Tensor, moved: Tensor) -> None:
        """By about `wanted`; into `moved` goes by how much."""
        group = column // self._form.group_size
        scale, zero = self._scales[group], self._zeros[group]
        step = self._steps[column]
        code = codes_of(wanted.addcmul_(step, scale), scale, zero, self._form).sub_(zero)
        # Both values are exact, so that what has not moved leaves exactly nothing.
        torch.mul(code - step, scale, out=moved)
        step.copy_(code)

    def move_scales(self, *, is_last: bool) -> None:
        """One group's scales after the other to their best values, where bfloat16 keeps a gain.

        `is_last`: nobody reads the slope of groups that are done.
        """
        size = self._form.group_size
        for group, scale in enumerate(self._scales):
            columns = slice(group * size, (group + 1) * size)
            part = self._steps[columns]
            with one_thread():
                change = self._change(part, columns, scale)
            first = columns.stop if is_last else 0
            scale += change
            self._slope[first:].addmm_(self._gram[first:, columns], part * change, alpha=-1)

    def _change(self, part: Tensor, columns: slice, scale: Tensor) -> Tensor:
        """Of a group's scales."""
        slope, own = self._slope[columns], self._gram[columns, columns]
        gain, curve = (part * slope).sum(0), (part * (own @ part)).sum(0)
        change = bfloat16(scale + gain / curve.clamp_min(1e-30)) - scale
        is_better = ((2 * gain - change * curve) * change > 0) & torch.isfinite(change)
        return torch.where(is_better, change, torch.zeros_like(change))

    def _grouped(self, values: Tensor) -> Tensor:
        """[groups, group_size, rows]."""
        return values.view(-1, self._form.group_size, values.shape[1])
