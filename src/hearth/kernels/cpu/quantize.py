"""Rows of weights to codes, by the kernels' own search: what packing makes, plainly."""

from __future__ import annotations

import ctypes

import numpy as np

from hearth.core.errors import KernelError
from hearth.core.spec import WeightSlot
from hearth.kernels.codes import widened
from hearth.kernels.cpu import abi
from hearth.kernels.cpu.library import load_library, resolve_isa
from hearth.kernels.packing import SCALE_CANDIDATES, CodeRows, HostTensor


def quantize_rows(slot: WeightSlot, tensor: HostTensor, isa: str = "auto") -> CodeRows:
    """The codes of `tensor`, [n, cols], as `CpuWeights.put` would pack them into the slot.

    Raises KernelError for values that are not finite, ConfigError for an `isa` that cannot run.
    """
    num_rows, groups = tensor.shape[0], -(-slot.cols // slot.quant.group_size)
    source = np.ascontiguousarray(tensor.data)
    codes = np.empty((num_rows, groups * slot.quant.group_size), np.uint8)
    scales = np.empty((num_rows, groups), np.uint16)
    zeros = np.empty((num_rows, groups), np.uint8)
    layout = abi.layout_of(slot)
    layout.rows = num_rows
    code = load_library().hearth_quantize(
        ctypes.byref(layout),
        source.ctypes.data,
        abi.DTYPE_CODES[tensor.dtype],
        num_rows,
        SCALE_CANDIDATES,
        resolve_isa(isa).encode(),
        codes.ctypes.data,
        scales.ctypes.data,
        zeros.ctypes.data,
    )
    if code == abi.E_MEMORY:
        raise KernelError(f"no memory to quantize {slot.name} in")
    if code != 0:
        raise KernelError(f"{slot.name} cannot be quantized: it has values that are not finite")
    return CodeRows(codes, widened(scales), None if slot.quant.symmetric else zeros)
