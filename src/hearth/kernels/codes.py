"""Packed codes read back, plainly: the layouts of `kernels/packing` and what codes stand for.

In numpy, without a kernel: what quantized kernels are held against, and how the torch reference
gets the very codes that they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import QuantSpec, SlotKind, WeightSlot
from hearth.core.units import round_up
from hearth.kernels.e4m3 import e4m3_values
from hearth.kernels.packing import PANEL_COLUMNS, CodeRows

_Element = TypeVar("_Element", bound=np.generic)

_TABLE_ZERO = 128  # a table has no zero points of its own


@dataclass(frozen=True, slots=True)
class Codes:
    """Of a slot: codes [rows, cols], scales and zero points [rows, groups].

    A weight is scale · (code − zero point), or, where `is_float`, scale · the FP8 number that the
    code is. Stacked matrices follow each other.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    is_float: bool = False

    def values(self, group_size: int) -> NDArray[np.float32]:
        """What the codes stand for, [rows, cols]; with bfloat16 scales exact in float32."""
        cols = self.codes.shape[1]
        scales = np.repeat(self.scales, group_size, axis=1)[:, :cols]
        if self.is_float:
            numbers = e4m3_values()[self.codes]
        else:
            zeros = np.repeat(self.zeros, group_size, axis=1)[:, :cols]
            numbers = self.codes.astype(np.float32) - zeros
        result: NDArray[np.float32] = numbers * scales
        return result


def row_values(rows: CodeRows, quant: QuantSpec) -> NDArray[np.float32]:
    """What rows of codes stand for, [n, cols padded to whole groups]."""
    zeros = rows.zeros
    if zeros is None:
        zeros = np.full(rows.scales.shape, 1 << quant.bits - 1, np.uint8)
    return Codes(rows.codes, rows.scales, zeros, quant.is_float).values(quant.group_size)


def read_codes(slot: WeightSlot, packed: NDArray[np.uint8]) -> Codes:
    """The codes of a quantized slot from its packed bytes."""
    if slot.kind is SlotKind.TABLE:
        return _of_table(slot, packed)
    quant, groups = slot.quant, -(-slot.cols // slot.quant.group_size)
    head = PANEL_COLUMNS * (quant.scale_bytes + (0 if quant.symmetric else 1))
    block = head + PANEL_COLUMNS * quant.group_size * quant.bits // 8
    blocks = packed.reshape(-1, groups, block)
    scales = _scales(quant, blocks[:, :, : PANEL_COLUMNS * quant.scale_bytes])
    zeros = blocks[:, :, PANEL_COLUMNS * quant.scale_bytes : head]
    if quant.symmetric:
        zeros = np.full(scales.shape, 1 << quant.bits - 1, np.uint8)
    raw = blocks[:, :, head:].reshape(len(blocks), groups, -1, PANEL_COLUMNS, 4)
    if quant.bits == 4:  # [panel, group, octet, half, column, 4]
        halves = np.stack([raw & 15, raw >> 4], axis=3)
        codes = halves.transpose(0, 4, 1, 2, 3, 5)
    else:
        codes = raw.transpose(0, 3, 1, 2, 4)
    per_row = codes.reshape(len(raw) * PANEL_COLUMNS, -1)[:, : slot.cols]
    return Codes(
        _without_padding(slot, per_row),
        _without_padding(slot, scales.transpose(0, 2, 1).reshape(-1, groups)),
        _without_padding(slot, zeros.transpose(0, 2, 1).reshape(-1, groups)),
        quant.is_float,
    )


def dequantized(slot: WeightSlot, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The matrix that a slot's packed codes stand for, [total_rows, cols]."""
    return read_codes(slot, packed).values(slot.quant.group_size)


def _of_table(slot: WeightSlot, packed: NDArray[np.uint8]) -> Codes:
    rows = packed.reshape(slot.rows, -1)
    padded = round_up(slot.cols, slot.quant.group_size)
    end = padded + padded // slot.quant.group_size * slot.quant.scale_bytes
    scales = _scales(slot.quant, rows[:, padded:end])
    zeros = np.full(scales.shape, _TABLE_ZERO, np.uint8)
    return Codes(rows[:, : slot.cols].copy(), scales, zeros, slot.quant.is_float)


def _without_padding(slot: WeightSlot, rows: NDArray[_Element]) -> NDArray[_Element]:
    """Each matrix of a stack is padded to whole panels."""
    matrices = rows.reshape(slot.stack, round_up(slot.rows, PANEL_COLUMNS), -1)
    return np.ascontiguousarray(matrices[:, : slot.rows].reshape(slot.total_rows, -1))


def _scales(quant: QuantSpec, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    raw = np.ascontiguousarray(raw)
    return raw.view(np.float32) if quant.wide_scales else widened(raw.view(np.uint16))


def widened(bfloat16: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, as their bits, in float32."""
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)
