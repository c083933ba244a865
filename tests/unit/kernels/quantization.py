"""Packed codes and rows read back in plain numpy: what the quantized kernels are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import SlotKind, WeightSlot

Floats = NDArray[np.float64]


def codes_of(slot: WeightSlot, packed: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """(codes, scales, zero points) of a packed slot, [rows, cols] and twice [rows, groups]."""
    quant = slot.quant
    groups = -(-slot.cols // quant.group_size)
    if slot.kind is SlotKind.TABLE:
        return _table(slot, packed, groups)
    head = 64 * (2 if quant.symmetric else 3)
    blocks = packed.reshape(-1, groups, head + 64 * quant.group_size * quant.bits // 8)
    scales = _bfloat16(blocks[:, :, :128])
    zeros = (
        np.full(scales.shape, float(1 << quant.bits - 1))
        if quant.symmetric
        else blocks[:, :, 128:192].astype(np.float64)
    )
    raw = blocks[:, :, head:]
    if quant.bits == 4:
        pairs = raw.reshape(len(raw), groups, -1, 64, 4)
        raw = np.stack([pairs & 15, pairs >> 4], axis=3)  # [panel, group, octet, half, column, 4]
        codes = raw.transpose(0, 4, 1, 2, 3, 5).reshape(len(raw) * 64, -1)
    else:
        quads = raw.reshape(len(raw), groups, -1, 64, 4)
        codes = quads.transpose(0, 3, 1, 2, 4).reshape(len(raw) * 64, -1)
    per_row = [a.transpose(0, 2, 1).reshape(-1, groups)[: slot.rows] for a in (scales, zeros)]
    return codes[: slot.rows, : slot.cols].astype(np.float64), per_row[0], per_row[1]


def _bfloat16(raw: NDArray[np.uint8]) -> Floats:
    return (raw.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _table(
    slot: WeightSlot, packed: NDArray[np.uint8], groups: int
) -> tuple[Floats, Floats, Floats]:
    rows = packed.reshape(slot.rows, -1)
    padded = groups * slot.quant.group_size
    scales = _bfloat16(rows[:, padded : padded + 2 * groups])
    return rows[:, : slot.cols].astype(np.float64), scales, np.full(scales.shape, 128.0)


def dequantized(slot: WeightSlot, packed: NDArray[np.uint8]) -> Floats:
    """The matrix that the codes stand for, [rows, cols]."""
    codes, scales, zeros = codes_of(slot, packed)
    spread = [np.repeat(a, slot.quant.group_size, axis=1)[:, : slot.cols] for a in (scales, zeros)]
    return (codes - spread[1]) * spread[0]


def rounded_rows(x: NDArray[np.float32], group_size: int) -> Floats:
    """What int8 rows stand for: each group of a row rounded to 127 steps of its largest value."""
    rows, cols = x.shape
    padded = np.zeros((rows, -(-cols // group_size) * group_size), np.float32)
    padded[:, :cols] = x
    groups = padded.reshape(rows, -1, group_size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(groups * inverse).astype(np.float64)
    scales = (largest / np.float32(127)).astype(np.float64)
    values: Floats = (codes * scales).reshape(rows, -1)[:, :cols]
    return values
