"""Weights of the reference executor: dense torch tensors in the slots' precision.

`weights[name]` is float32 whatever is stored, since the arithmetic is.
"""

from __future__ import annotations

import numpy as np
import torch

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.kernels.packing import HostTensor

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
            self._stored[slot.name] = torch.zeros(shape, dtype=torch_dtype(slot.quant.dtype))

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
        stored[first_row:last_row] = rows.to(stored.dtype)

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """See `WeightSink.fill_random`: normal with deviation 1/√cols; biases are zero."""
        stored = self._slot(slot.name)
        if slot.kind is SlotKind.VECTOR:
            stored.fill_(0.0 if slot.name.endswith(".bias") else 1.0)
            return
        generator = torch.Generator().manual_seed(seed)
        stored.copy_(torch.randn(stored.shape, generator=generator) * slot.cols**-0.5)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._slot(name).to(torch.float32)

    def _slot(self, name: str) -> torch.Tensor:
        try:
            return self._stored[name]
        except KeyError:
            raise KernelError(f"the program has no weight slot {name}") from None
