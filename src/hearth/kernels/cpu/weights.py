"""Packed weights of a program in one memory arena, filled tensor by tensor or mapped from a file.

Owns the arena; the layouts are those of `kernels/packing`. Nothing is kept of a source tensor.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.core.units import format_bytes
from hearth.kernels.cpu import abi
from hearth.kernels.cpu.library import load_library, resolve_isa
from hearth.kernels.packing import (
    SCALE_CANDIDATES,
    CodeRows,
    HostTensor,
    arena_bytes,
    matrix_bytes,
    packed_bytes,
    packed_tensors,
)

_HUGE_PAGE_BYTES = 2 << 20


class CpuWeights:
    """A WeightSink for the CPU executor. `put` may run in several threads for different slots."""

    def __init__(
        self, program: StepProgram, memory: mmap.mmap | None = None, isa: str = "auto"
    ) -> None:
        """In zeroed memory of its own, or in `memory`: `arena_bytes`, zeroed or packed already.

        `isa` makes the codes of quantized slots. Raises CapacityError, ConfigError, KernelError.
        """
        self._library = load_library()
        self._isa = resolve_isa(isa).encode()
        total = arena_bytes(program.slots)
        if memory is not None and len(memory) != total:
            raise KernelError(f"{len(memory):,} bytes are given for an arena of {total:,}")
        self._memory = _anonymous(total) if memory is None else memory
        self._arena: NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8)
        self._base: int = self._arena.ctypes.data
        self._offsets = {tensor.name: tensor.offset for tensor in packed_tensors(program.slots)}

    @property
    def num_bytes(self) -> int:
        """Size of the arena."""
        return self._arena.nbytes

    @property
    def base_address(self) -> int:
        """Where the arena begins."""
        return self._base

    def address(self, slot: WeightSlot) -> int:
        """Where the packed tensor of a slot begins; valid while this object lives."""
        return self._base + self._offsets[slot.name]

    def packed(self, slot: WeightSlot) -> NDArray[np.uint8]:
        """The bytes of a slot as they lie in the arena; a view."""
        offset = self._offsets[slot.name]
        return self._arena[offset : offset + packed_bytes(slot)]

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """Packs all rows of `tensor`, [n, cols] or [n], into rows `first_row` … of the slot."""
        num_rows = tensor.shape[0]
        expected = (num_rows,) if slot.kind is SlotKind.VECTOR else (num_rows, slot.cols)
        if tensor.shape != expected or first_row + num_rows > slot.total_rows:
            raise KernelError(
                f"a tensor of shape {list(tensor.shape)} does not fit rows {first_row} … of "
                f"slot {slot.name} [{slot.total_rows}, {slot.cols}]"
            )
        source = np.ascontiguousarray(tensor.data)
        row_bytes = source.nbytes // max(num_rows, 1)
        for matrix, row, done, count in _per_matrix(slot, first_row, num_rows):
            self._check(
                slot,
                self._library.hearth_pack(
                    self._matrix_address(slot, matrix),
                    ctypes.byref(abi.layout_of(slot)),
                    source.ctypes.data + done * row_bytes,
                    abi.DTYPE_CODES[tensor.dtype],
                    row,
                    count,
                    SCALE_CANDIDATES,
                    self._isa,
                ),
            )

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """See `WeightSink.put_codes`."""
        num_rows, groups = rows.scales.shape
        width = groups * slot.quant.group_size
        if rows.codes.shape != (num_rows, width) or first_row + num_rows > slot.total_rows:
            raise KernelError(
                f"codes of shape {list(rows.codes.shape)} do not fit rows {first_row} … of slot "
                f"{slot.name} [{slot.total_rows}, {slot.cols}]"
            )
        if (rows.zeros is None) != slot.quant.symmetric:
            raise KernelError(f"slot {slot.name} is {slot.quant.name}: zero points do not fit")
        codes, scales = np.ascontiguousarray(rows.codes), np.ascontiguousarray(rows.scales)
        zeros = None if rows.zeros is None else np.ascontiguousarray(rows.zeros)
        for matrix, row, done, count in _per_matrix(slot, first_row, num_rows):
            self._check(
                slot,
                self._library.hearth_pack_codes(
                    self._matrix_address(slot, matrix),
                    ctypes.byref(abi.layout_of(slot)),
                    codes.ctypes.data + done * width,
                    scales.ctypes.data + done * groups * scales.itemsize,
                    None if zeros is None else zeros.ctypes.data + done * groups,
                    row,
                    count,
                ),
            )

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """Uniform random values: matrices with variance 1/cols, norm weights 1, small biases."""
        base, amplitude = 0.0, math.sqrt(3.0 / slot.cols)
        if slot.kind is SlotKind.VECTOR:
            base, amplitude = (1.0, 0.0) if is_norm_weight(slot) else (0.0, 0.02)
        for matrix in range(slot.stack):
            address = self._matrix_address(slot, matrix)
            self._check(
                slot,
                self._library.hearth_fill_random(
                    address,
                    ctypes.byref(abi.layout_of(slot)),
                    0,
                    slot.rows,
                    (seed * 1_000_003 + address - self._base) % 2**64,
                    base,
                    amplitude,
                ),
            )

    def _matrix_address(self, slot: WeightSlot, matrix: int) -> int:
        """Where one of the stacked matrices begins; other slots have one, matrix 0."""
        return self.address(slot) + matrix * matrix_bytes(slot)

    @staticmethod
    def _check(slot: WeightSlot, code: int) -> None:
        if code == abi.E_MEMORY:
            raise KernelError(f"no memory to pack slot {slot.name} in")
        if code != 0:
            why = ": it has values that are not finite" if slot.quant.bits else ""
            if slot.quant.dtype is DType.FLOAT16 and not slot.quant.bits:
                why = ": it has values beyond 65,504, the largest of float16"
            raise KernelError(f"slot {slot.name} cannot be packed as {slot.quant.name}{why}")


def _per_matrix(
    slot: WeightSlot, first_row: int, num_rows: int
) -> Iterator[tuple[int, int, int, int]]:
    """Rows of a stack, matrix by matrix: the matrix, its row, rows done before, rows now."""
    done = 0
    while done < num_rows:
        matrix, row = divmod(first_row + done, slot.rows)
        count = min(num_rows - done, slot.rows - row)
        yield matrix, row, done, count
        done += count


def is_norm_weight(slot: WeightSlot) -> bool:
    """Whether a vector scales what a norm gives; others are biases."""
    return "norm" in slot.name and not slot.name.endswith(".bias")


def _anonymous(num_bytes: int) -> mmap.mmap:
    """Zeroed memory, in huge pages where the kernel has some. Raises CapacityError."""
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CapacityError(f"cannot map {format_bytes(num_bytes)} for weights") from error
    if num_bytes >= _HUGE_PAGE_BYTES:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
