"""Rows of codes from compressed-tensors' files.

`pack-quantized`: `weight_packed` int32 [rows, ceil(cols · bits / 32)], element i of a row in bits
(i mod (32 / bits)) · bits of its word, offset so that it is unsigned; `weight_scale` [rows,
groups]; `weight_zero_point` packed alike, but along the rows. `int-quantized`: `weight` int8 [rows,
cols], zero points int8. Codes and scales are taken as they are: no value changes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import CodesForm
from hearth.kernels.codes import widened
from hearth.kernels.packing import HostTensor
from hearth.models.formats.matrix import (
    FLOATS,
    Maps,
    StoredMatrix,
    StoredRows,
    column_groups,
    find,
    host_tensor,
    nibbles,
)
from hearth.models.safetensors_file import Checkpoint, TensorEntry
from hearth.models.stored import PACKED, has_codes

_MIDDLE = 128  # of 8 bits
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class CompressedMatrix(StoredMatrix):
    """`others`: the scales; zero points where the form is not symmetric; the groups of columns."""

    def read(self, first: int, count: int, maps: Maps) -> StoredRows | HostTensor:
        """See `StoredMatrix.read`."""
        zeros = None if self.form.symmetric else _zeros(self, first, count, maps)
        scales = _scales(self.others[0], first, count, maps)
        codes = _codes(self, first, count, maps)
        groups = column_groups(self.others[-1], self.form, scales.shape[1], maps)
        if groups is None:
            return StoredRows(codes, scales, zeros, self.form.bits)
        middle = np.uint8(1 << self.form.bits - 1)
        distance = codes.astype(np.float32) - (middle if zeros is None else zeros[:, groups])
        return host_tensor(distance * scales[:, groups])


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `formats.forms.Rows`."""
    return has_codes(tensor, names)


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> CompressedMatrix:
    """See `formats.forms.Rows`."""
    rows, cols = shape
    groups = -(-cols // form.group_size) if form.group_size else 1
    if form.format == PACKED:
        per_word = _WORD_BITS // form.bits
        codes = find(checkpoint, f"{tensor}_packed", ("I32",), (rows, -(-cols // per_word)))
        zeros_shape, zeros_type = (-(-rows // per_word), groups), "I32"
    else:
        codes = find(checkpoint, tensor, ("I8",), (rows, cols))
        zeros_shape, zeros_type = (rows, groups), "I8"
    others = [find(checkpoint, f"{tensor}_scale", FLOATS, (rows, groups))]
    if not form.symmetric:
        others.append(find(checkpoint, f"{tensor}_zero_point", (zeros_type,), zeros_shape))
    if form.is_ordered or f"{tensor}_g_idx" in checkpoint.tensors:
        others.append(find(checkpoint, f"{tensor}_g_idx", ("I32", "I64"), (cols,)))
    return CompressedMatrix(form, tensor, rows, cols, codes, tuple(others))


def _codes(source: CompressedMatrix, first: int, count: int, maps: Maps) -> NDArray[np.uint8]:
    """Unsigned codes, [count, cols]."""
    begin = source.main.begin + first * source.row_bytes
    rows = _bytes(source.main, begin, count * source.row_bytes, maps).reshape(count, -1)
    if source.form.format != PACKED:
        return rows ^ np.uint8(_MIDDLE)
    if source.form.bits == 8:
        return rows[:, : source.cols]
    return nibbles(rows)[:, : source.cols]


def _zeros(source: CompressedMatrix, first: int, count: int, maps: Maps) -> NDArray[np.uint8]:
    """Zero points as unsigned codes, [count, groups]."""
    entry = source.others[1]
    groups = entry.shape[1]
    if source.form.format != PACKED:
        raw = _bytes(entry, entry.begin + first * groups, count * groups, maps)
        return raw.reshape(count, groups) ^ np.uint8(_MIDDLE)
    bits = source.form.bits
    per_word = _WORD_BITS // bits
    begin, end = first // per_word, -(-(first + count) // per_word)
    raw = _bytes(entry, entry.begin + begin * groups * 4, (end - begin) * groups * 4, maps)
    words = raw.view("<u4").reshape(end - begin, 1, groups)
    shifts = np.arange(per_word, dtype=np.uint32).reshape(1, per_word, 1) * bits
    unpacked = (words >> shifts & ((1 << bits) - 1)).astype(np.uint8).reshape(-1, groups)
    skipped = first - begin * per_word
    return unpacked[skipped : skipped + count]


def _scales(entry: TensorEntry, first: int, count: int, maps: Maps) -> NDArray[np.float32]:
    """[count, groups]."""
    row_bytes = (entry.end - entry.begin) // entry.shape[0]
    raw = _bytes(entry, entry.begin + first * row_bytes, count * row_bytes, maps)
    if entry.dtype == "BF16":
        values = widened(raw.view("<u2"))
    else:
        values = raw.view("<f4" if entry.dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(count, -1)


def _bytes(entry: TensorEntry, begin: int, num_bytes: int, maps: Maps) -> NDArray[np.uint8]:
    """A copy, aligned to whatever its elements are."""
    return np.frombuffer(maps[entry.path], np.uint8, num_bytes, begin).copy()
