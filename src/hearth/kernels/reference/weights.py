"""Weights of the reference executor: dense torch tensors in the slots' precision.

`weights[name]` is float32 whatever is stored, since the arithmetic is. A quantized slot holds the
float32 values that its codes stand for.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.kernels.codes import dequantized, row_values
from hearth.kernels.packing import CodeRows, HostTensor
from hearth.kernels.reference.quantize import rounded_weights

_TORCH_DTYPES = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch element type of a storage precision."""
    return _TORCH_DTYPES[dtype]


class ReferenceWeights:
    """A `WeightSink` that keeps `[total_rows, cols]` (vectors `[rows]`) tensors by slot name."""

    def __init__(self, program: StepProgram) -> None:
        self._stored: dict[str, torch.Tensor] = {}
        for slot in program.slots:
            shape = (slot.rows,) if slot.kind is SlotKind.VECTOR else (slot.total_rows, slot.cols)
            dtype = DType.FLOAT32 if slot.quant.bits else slot.quant.dtype
            self._stored[slot.name] = torch.zeros(shape, dtype=torch_dtype(dtype))

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """See `WeightSink.put`; rounds to nearest even where the slot is narrower."""
        stored = self._slot(slot.name)
        last_row = first_row + tensor.shape[0]
        if stored[first_row:last_row].shape != tensor.shape:
            raise KernelError(
                f"slot {slot.name} of shape {list(stored.shape)} cannot take "
                f"{list(tensor.shape)} at row {first_row}"
            )
        # The copy detaches from the memory map and makes the array writable, as torch asks.
        raw = torch.from_numpy(np.array(tensor.data, np.uint8))
        rows = raw.view(torch_dtype(tensor.dtype)).reshape(tensor.shape)
        if slot.quant.bits:
            rows = rounded_weights(rows, slot.quant)
            if not rows.isfinite().all():
                raise KernelError(f"slot {slot.name} has values that are not finite")
        stored[first_row:last_row] = rows.to(stored.dtype)

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """See `WeightSink.put_codes`; keeps what the codes stand for."""
        values = row_values(rows, slot.quant)[:, : slot.cols]
        last_row = first_row + len(values)
        self._slot(slot.name)[first_row:last_row] = torch.from_numpy(values)

    def put_packed(self, slot: WeightSlot, packed: NDArray[np.uint8]) -> None:
        """Takes a quantized slot from the bytes that a kernel reads."""
        self._slot(slot.name).copy_(torch.from_numpy(dequantized(slot, packed)))

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """See `WeightSink.fill_random`: normal with deviation 1/√cols; biases are zero."""
        stored = self._slot(slot.name)
        if slot.kind is SlotKind.VECTOR:
            stored.fill_(0.0 if slot.name.endswith(".bias") else 1.0)
            return
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(stored.shape, generator=generator) * slot.cols**-0.5
        stored.copy_(rounded_weights(values, slot.quant) if slot.quant.bits else values)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._slot(name).to(torch.float32)

    def _slot(self, name: str) -> torch.Tensor:
        try:
            return self._stored[name]
        except KeyError:
            raise KernelError(f"the program has no weight slot {name}") from None
