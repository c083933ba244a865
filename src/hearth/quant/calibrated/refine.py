"""Coordinate descent on the layer's squared output error, from codes that GPTQ has found.

One column's codes, then one group's scale at a time take their best values while all others stay;
no step lets the error grow. (In the spirit of QuantEase, arXiv 2309.01885; the scales are ours.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hearth.quant.calibrated.fit import Grid, bfloat16, codes_of
from hearth.quant.calibrated.gptq import Coded, prepared

_BLOCK = 128
SWEEPS = 2


def refined(weight: Tensor, gram: Tensor, coded: Coded, sweeps: int = SWEEPS) -> Coded:
    """Better codes and scales for `weight` [rows, cols], inputs' `gram` [cols, cols].

    With the damping that GPTQ took: it keeps weights near, about which the inputs say nothing.
    """
    gram = prepared(gram)
    gram.diagonal().add_(coded.damping * gram.diagonal().mean())
    for _ in range(sweeps):
        coded = _with_scales(weight, gram, _with_codes(weight, gram, coded))
    return coded


def _with_codes(weight: Tensor, gram: Tensor, coded: Coded) -> Coded:
    """One column after the other to its best codes, in blocks."""
    form, grid = coded.form, coded.grid
    codes, values = coded.codes.clone(), coded.values
    slope = (weight - values) @ gram
    diagonal = gram.diagonal().tolist()
    for begin in range(0, weight.shape[1], _BLOCK):
        end = min(begin + _BLOCK, weight.shape[1])
        old, local = values[:, begin:end].clone(), slope[:, begin:end].clone()
        near = gram[begin:end, begin:end]
        for j in range(end - begin):
            group = (begin + j) // form.group_size
            scale, zero = grid.scales[:, group], grid.zeros[:, group]
            column = values[:, begin + j]
            code = codes_of(column + local[:, j] / diagonal[begin + j], scale, zero, form)
            value = (code - zero) * scale
            local -= (value - column)[:, None] * near[j]
            values[:, begin + j] = value
            codes[:, begin + j] = code.to(torch.uint8)
        slope -= (values[:, begin:end] - old) @ gram[begin:end]
    return Coded(codes, grid, form, coded.damping)


def _with_scales(weight: Tensor, gram: Tensor, coded: Coded) -> Coded:
    """One group's scales after the other to their best values, where bfloat16 keeps a gain."""
    form, grid, size = coded.form, coded.grid, coded.form.group_size
    scales = grid.scales.clone()
    steps = coded.codes.float() - grid.zeros.repeat_interleave(size, 1)
    slope = (weight - coded.values) @ gram
    for group in range(scales.shape[1]):
        columns = slice(group * size, (group + 1) * size)
        part = steps[:, columns]
        moved = part @ gram[columns]
        gain, curve = (part * slope[:, columns]).sum(1), (part * moved[:, columns]).sum(1)
        wanted = scales[:, group] + gain / curve.clamp_min(1e-30)
        change = bfloat16(wanted) - scales[:, group]
        is_better = ((2 * gain - change * curve) * change > 0) & torch.isfinite(change)
        change = torch.where(is_better, change, torch.zeros_like(change))
        scales[:, group] += change
        slope -= change[:, None] * moved
    return Coded(coded.codes, Grid(scales, grid.zeros), form, coded.damping)
