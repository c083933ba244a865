"""Rows of codes from a checkpoint's files, laid out as `kernels/packing.CodeRows` wants them.

compressed-tensors, `pack-quantized`: `weight_packed` int32 [rows, ceil(cols · bits / 32)], element
i of a row in bits (i mod (32 / bits)) · bits of its word, offset so that it is unsigned;
`weight_scale` [rows, groups]; `weight_zero_point` packed alike, but along the rows.
`int-quantized`: `weight` int8 [rows, cols], zero points int8. Codes and scales are taken as they
are: no value changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm, WeightSlot
from hearth.kernels.codes import widened
from hearth.kernels.packing import CodeRows
from hearth.models.safetensors_file import Checkpoint, TensorEntry
from hearth.models.stored import PACKED

_MIDDLE = 128  # of 8 bits
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class CodeEntries:
    """The tensors of one stored matrix of `rows` × `cols`."""

    codes: TensorEntry
    scales: TensorEntry
    zeros: TensorEntry | None
    form: CodesForm
    rows: int
    cols: int

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """All of them."""
        return (self.codes, self.scales, *(() if self.zeros is None else (self.zeros,)))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's codes in the file."""
        return (self.codes.end - self.codes.begin) // self.rows


@dataclass(frozen=True, slots=True)
class CodePiece:
    """`num_rows` rows from `first_row` of a stored matrix, to the slot from `slot_row`."""

    source: CodeEntries
    first_row: int
    num_rows: int
    slot_row: int

    @property
    def num_bytes(self) -> int:
        """Of their codes in the file."""
        return self.num_rows * self.source.row_bytes

    @property
    def path(self) -> Path:
        """The file of their codes."""
        return self.source.codes.path

    @property
    def begin(self) -> int:
        """Where their codes begin in the file."""
        return self.source.codes.begin + self.first_row * self.source.row_bytes


def code_entries(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, rows: int, cols: int
) -> CodeEntries:
    """The tensors of the matrix `tensor`, ….weight, checked against the form and the shape.

    Raises WeightsError for one that is missing, or of another type or shape.
    """
    groups = -(-cols // form.group_size) if form.group_size else 1
    if form.format == PACKED:
        per_word = _WORD_BITS // form.bits
        codes = _entry(checkpoint, f"{tensor}_packed", ("I32",), (rows, -(-cols // per_word)))
        zeros_shape, zeros_type = (-(-rows // per_word), groups), "I32"
    else:
        codes = _entry(checkpoint, tensor, ("I8",), (rows, cols))
        zeros_shape, zeros_type = (rows, groups), "I8"
    scales = _entry(checkpoint, f"{tensor}_scale", ("BF16", "F16", "F32"), (rows, groups))
    zeros = None
    if not form.symmetric:
        zeros = _entry(checkpoint, f"{tensor}_zero_point", (zeros_type,), zeros_shape)
    if f"{tensor}_g_idx" in checkpoint.tensors:
        raise WeightsError(
            f"{codes.path.name}: {tensor}_g_idx orders columns by activation; permitted: groups of "
            "neighbouring columns",
            hint="hearth does not read this form: use another quantization of the model",
        )
    return CodeEntries(codes, scales, zeros, form, rows, cols)


def read_rows(slot: WeightSlot, piece: CodePiece, maps: Mapping[Path, mmap]) -> CodeRows:
    """The piece as the slot stores it; copies."""
    source = piece.source
    codes, zeros = _codes(piece, maps), _zeros(piece, maps)
    scales = _scales(source.scales, piece, maps)
    quant, bits = slot.quant, source.form.bits
    groups = -(-slot.cols // quant.group_size)
    if scales.shape[1] != groups:  # one scale for a row
        scales = np.repeat(scales, groups, axis=1)
        zeros = None if zeros is None else np.repeat(zeros, groups, axis=1)
    middle = 1 << bits - 1
    padded = np.full((piece.num_rows, groups * quant.group_size), middle, np.uint8)
    padded[:, : slot.cols] = codes
    if quant.bits == bits:
        return CodeRows(padded, scales, zeros)
    # 4 bits as 8: the distance from the zero point stays.
    each = middle if zeros is None else np.repeat(zeros, quant.group_size, axis=1)
    return CodeRows((padded - each + np.uint8(_MIDDLE)).astype(np.uint8), scales)


def _entry(
    checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    entry = checkpoint.tensors.get(name)
    if entry is None:
        raise WeightsError(
            f"the checkpoint has no tensor {name}, but others of the same matrix, as codes",
            hint="its files do not belong together, or config.json describes another form",
        )
    where = f"{entry.path.name}: tensor {name}"
    if entry.dtype not in dtypes:
        raise WeightsError(f"{where}: dtype is {entry.dtype}; permitted: {', '.join(dtypes)}")
    if entry.shape != shape:
        raise WeightsError(
            f"{where}: shape is {list(entry.shape)}; config.json makes it {list(shape)}"
        )
    return entry


def _codes(piece: CodePiece, maps: Mapping[Path, mmap]) -> NDArray[np.uint8]:
    """Unsigned codes, [num_rows, cols]."""
    source = piece.source
    raw = _bytes(source.codes, piece.begin, piece.num_bytes, maps)
    rows = raw.reshape(piece.num_rows, source.row_bytes)
    if source.form.format != PACKED:
        return rows ^ np.uint8(_MIDDLE)
    if source.form.bits == 8:
        return rows[:, : source.cols]
    return _nibbles(rows)[:, : source.cols]


def _nibbles(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two for each byte, the low one first."""
    codes = np.empty((len(rows), rows.shape[1] * 2), np.uint8)
    np.bitwise_and(rows, 15, out=codes[:, 0::2])
    np.right_shift(rows, 4, out=codes[:, 1::2])
    return codes


def _zeros(piece: CodePiece, maps: Mapping[Path, mmap]) -> NDArray[np.uint8] | None:
    """Zero points as unsigned codes, [num_rows, groups]."""
    source, entry = piece.source, piece.source.zeros
    if entry is None:
        return None
    groups = entry.shape[1]
    last = piece.first_row + piece.num_rows
    if source.form.format != PACKED:
        raw = _bytes(entry, entry.begin + piece.first_row * groups, piece.num_rows * groups, maps)
        return raw.reshape(piece.num_rows, groups) ^ np.uint8(_MIDDLE)
    bits = source.form.bits
    per_word = _WORD_BITS // bits
    begin, end = piece.first_row // per_word, -(-last // per_word)
    raw = _bytes(entry, entry.begin + begin * groups * 4, (end - begin) * groups * 4, maps)
    words = raw.view("<u4").reshape(end - begin, 1, groups)
    shifts = np.arange(per_word, dtype=np.uint32).reshape(1, per_word, 1) * bits
    unpacked = (words >> shifts & ((1 << bits) - 1)).astype(np.uint8).reshape(-1, groups)
    first = piece.first_row - begin * per_word
    return unpacked[first : first + piece.num_rows]


def _scales(entry: TensorEntry, piece: CodePiece, maps: Mapping[Path, mmap]) -> NDArray[np.float32]:
    """[num_rows, groups]."""
    row_bytes = (entry.end - entry.begin) // entry.shape[0]
    begin = entry.begin + piece.first_row * row_bytes
    raw = _bytes(entry, begin, piece.num_rows * row_bytes, maps)
    if entry.dtype == "BF16":
        values = widened(raw.view("<u2"))
    else:
        values = raw.view("<f4" if entry.dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(piece.num_rows, -1)


def _bytes(
    entry: TensorEntry, begin: int, num_bytes: int, maps: Mapping[Path, mmap]
) -> NDArray[np.uint8]:
    """A copy, aligned to whatever its elements are."""
    return np.frombuffer(maps[entry.path], np.uint8, num_bytes, begin).copy()
