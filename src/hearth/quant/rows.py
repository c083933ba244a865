"""Rows to 8-bit codes with one scale each: compressed-tensors' int- and float-quantized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.spec import DType, WeightSlot
from hearth.kernels.codes import widened
from hearth.kernels.e4m3 import LARGEST, to_e4m3
from hearth.kernels.packing import CodeRows, HostTensor

_MIDDLE, _MOST = 128, 127


def whole_row_codes(slot: WeightSlot, tensor: HostTensor) -> CodeRows:
    """Codes [n, cols], scales [n, 1]: the largest magnitude of a row becomes 127, of FP8 448.

    The scale is rounded to bfloat16 first. Raises KernelError for values that are not finite.
    """
    values = float_rows(tensor)
    most = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    if not np.isfinite(most).all():
        raise KernelError(f"{slot.name} cannot be quantized: it has values that are not finite")
    scales = rounded_to_bfloat16(most / np.float32(LARGEST if slot.quant.is_float else _MOST))
    steps = np.where(scales > 0, values / np.where(scales > 0, scales, 1), 0)
    if slot.quant.is_float:
        return CodeRows(to_e4m3(steps), scales)
    codes = np.clip(np.rint(steps), -_MOST, _MOST) + _MIDDLE
    return CodeRows(codes.astype(np.uint8), scales)


def float_rows(tensor: HostTensor) -> NDArray[np.float32]:
    """The values of a tensor, [n, cols]."""
    if tensor.dtype is DType.BFLOAT16:
        return widened(tensor.data.view(np.uint16)).reshape(tensor.shape)
    kind = np.float16 if tensor.dtype is DType.FLOAT16 else np.float32
    return tensor.data.view(kind).reshape(tensor.shape).astype(np.float32)


def rounded_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite values to the nearest that bfloat16 holds, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    result: NDArray[np.float32] = rounded.view(np.float32)
    return result
