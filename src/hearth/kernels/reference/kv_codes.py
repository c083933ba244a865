"""Keys and values as codes, in plain torch: the rule of `csrc/kernels_kv_codes.h`, bit for bit.

A value is scale · code. The scale is bfloat16, of one token's key or value in one head (of a value
in 4 bits: of `KV_SCALE_COLUMNS` columns), and codes are x / scale, rounded to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from hearth.core.spec import KvDType
from hearth.kernels.packing import KV_SCALE_COLUMNS

LEAST = 1e-30  # what is smaller all over is zero
_OF_LARGEST = {KvDType.INT8: 127.0, KvDType.INT4: -8.0, KvDType.FP8: 448.0}
_RANGE = {KvDType.INT8: (-127.0, 127.0), KvDType.INT4: (-8.0, 7.0), KvDType.FP8: (-448.0, 448.0)}


@dataclass(frozen=True, slots=True)
class Coded:
    """Codes [..., width] as the numbers they are, and scales [..., groups], float32."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def values(self) -> torch.Tensor:
        """What they stand for, [..., width]."""
        width = self.codes.shape[-1]
        size = width if self.scales.shape[-1] == 1 else KV_SCALE_COLUMNS
        return self.codes * self.scales.repeat_interleave(size, dim=-1)[..., :width]


def code_keys(keys: torch.Tensor, dtype: KvDType, *, rotated: bool) -> Coded:
    """Of keys [..., head_dim], rotated first where asked for."""
    return _coded(rotate(keys) if rotated else keys, dtype)


def code_values(values: torch.Tensor, dtype: KvDType) -> Coded:
    """Of values [..., head_dim]."""
    if dtype is not KvDType.INT4:
        return _coded(values, dtype)
    width = values.shape[-1]
    padded = functional.pad(values, (0, -width % KV_SCALE_COLUMNS))
    groups = padded.reshape(*values.shape[:-1], -1, KV_SCALE_COLUMNS)
    coded = _coded(groups, dtype)
    return Coded(coded.codes.flatten(-2)[..., :width], coded.scales[..., 0])


def rotate(x: torch.Tensor) -> torch.Tensor:
    """H x / √n of each n neighbours, the largest power of two that divides the width.

    H is the Walsh-Hadamard matrix; butterflies in the kernels' order, for equal bits.
    """
    width = x.shape[-1]
    size = width & -width
    half = 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((first + second, first - second), dim=-2).reshape(x.shape)
        half *= 2
    return x * float(np.float32(1) / np.sqrt(np.float32(size)))


def _coded(x: torch.Tensor, dtype: KvDType) -> Coded:
    """One scale for the last dimension."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    most = torch.where(-low > high, low, high)
    if dtype is not KvDType.INT4:
        most = most.abs()
    is_finite = x.isfinite().all(-1, keepdim=True)
    is_plain = is_finite & (most.abs() >= LEAST)
    scales = torch.where(is_plain, most, 1.0) / _OF_LARGEST[dtype]
    scales = scales.bfloat16().float()
    codes = x * (1.0 / scales)
    if dtype is not KvDType.FP8:
        codes = codes.round()
    codes = codes.clamp(*_RANGE[dtype])
    if dtype is KvDType.FP8:
        codes = codes.to(torch.float8_e4m3fn).float()
    codes = torch.where(is_plain, codes, 0.0)
    scales = torch.where(is_plain, scales, torch.where(is_finite, 0.0, torch.nan))
    return Coded(codes, scales)
