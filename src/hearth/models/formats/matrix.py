"""A matrix that a checkpoint stores in a form of its own, and the rows that are read of it.

A format's `…_rows` module has a subclass of `StoredMatrix`. Nothing here knows a format.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm, DType
from hearth.kernels.codes import widened
from hearth.kernels.packing import HostTensor
from hearth.models.safetensors_file import Checkpoint, TensorEntry

FLOATS = ("BF16", "F16", "F32")
Maps: TypeAlias = Mapping[Path, mmap.mmap]


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows as a file has them: a weight is scale · (code − zero point).

    `codes` [n, cols] uint8, below 2^bits; `scales` float32 and `zeros` uint8 [n, groups], one group
    where a scale holds for a whole row; zeros None: the middle code. `is_float`: codes are FP8
    numbers, without zero points.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    bits: int
    is_float: bool = False


AnyRows: TypeAlias = StoredRows | HostTensor


@dataclass(frozen=True, slots=True)
class StoredMatrix(ABC):
    """One matrix of `rows` × `cols`, all of whose tensors have been checked.

    `main`: the tensor with the codes; `others`: scales and whatever else belongs to it.
    """

    form: CodesForm
    tensor: str
    rows: int
    cols: int
    main: TensorEntry
    others: tuple[TensorEntry, ...]

    # Whether a few rows lie all over the main tensor, as where columns come first.
    is_scattered: ClassVar[bool] = False

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        """All of its tensors."""
        return (self.main, *self.others)

    @property
    def row_bytes(self) -> int:
        """A row's share of the main tensor."""
        return (self.main.end - self.main.begin) // self.rows

    @abstractmethod
    def read(self, first: int, count: int, maps: Maps) -> AnyRows:
        """Rows `first` … `first` + `count` − 1: codes, or floating point in their order; copies."""


@dataclass(frozen=True, slots=True)
class CodePiece:
    """`num_rows` rows from `first_row` of a stored matrix, to the slot from `slot_row`."""

    source: StoredMatrix
    first_row: int
    num_rows: int
    slot_row: int

    @property
    def num_bytes(self) -> int:
        """Their share of the codes in the file."""
        return self.num_rows * self.source.row_bytes

    @property
    def path(self) -> Path:
        """The file of their codes."""
        return self.source.main.path

    @property
    def begin(self) -> int:
        """Where their share begins in the file."""
        return self.source.main.begin + self.first_row * self.source.row_bytes

    @property
    def touched(self) -> range:
        """The bytes of the file that reading them touches."""
        main = self.source.main
        if self.source.is_scattered:
            return range(main.begin, main.end)
        return range(self.begin, self.begin + self.num_bytes)


def find(
    checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> TensorEntry:
    """A tensor of a stored matrix. Raises WeightsError: missing, of another type or shape."""
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


def array_of(entry: TensorEntry, dtype: DTypeLike, maps: Maps) -> NDArray[np.generic]:
    """A view of a tensor in its shape; it may be unaligned."""
    item = np.dtype(dtype)
    count = (entry.end - entry.begin) // item.itemsize
    flat = np.frombuffer(maps[entry.path], item, count, entry.begin)
    return flat.reshape(entry.shape)


def bytes_of(entry: TensorEntry, maps: Maps) -> NDArray[np.uint8]:
    """A view of a tensor of single bytes in its shape."""
    flat = np.frombuffer(maps[entry.path], np.uint8, entry.end - entry.begin, entry.begin)
    return flat.reshape(entry.shape)


def floats_of(entry: TensorEntry, maps: Maps) -> NDArray[np.float32]:
    """A tensor of floating point in float32, in its shape; a copy."""
    if entry.dtype == "BF16":
        return widened(array_of(entry, "<u2", maps).astype(np.uint16))
    return array_of(entry, "<f4" if entry.dtype == "F32" else "<f2", maps).astype(np.float32)


def column_groups(
    entry: TensorEntry, form: CodesForm, num_groups: int, maps: Maps
) -> NDArray[np.int64] | None:
    """The group of each column from a matrix' last tensor; None: neighbours, or it has none.

    In a form that is ordered always an array. Raises WeightsError for groups that there are not,
    and for an order of which the configuration says nothing.
    """
    if not entry.name.endswith("g_idx"):
        return None
    groups = array_of(entry, "<i8" if entry.dtype == "I64" else "<i4", maps).astype(np.int64)
    if groups.min(initial=0) < 0 or groups.max(initial=0) >= num_groups:
        raise WeightsError(
            f"{entry.path.name}: {entry.name} names group {int(groups.max())}; permitted: 0 to "
            f"{num_groups - 1}"
        )
    if form.is_ordered:
        return groups
    if not np.array_equal(groups, np.arange(len(groups)) // (form.group_size or len(groups))):
        key = "desc_act: false" if form.format == "gptq" else "no actorder"
        raise WeightsError(
            f"{entry.path.name}: {entry.name} orders columns by activation, but config.json has "
            f"{key}",
            hint="correct quantization_config in config.json",
        )
    return None


def nibbles(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two codes for each byte of [n, bytes], the low one first."""
    codes = np.empty((len(rows), rows.shape[1] * 2), np.uint8)
    np.bitwise_and(rows, 15, out=codes[:, 0::2])
    np.right_shift(rows, 4, out=codes[:, 1::2])
    return codes


def host_tensor(values: NDArray[np.float32]) -> HostTensor:
    """Rows of float32 for a sink."""
    values = np.ascontiguousarray(values, np.float32)
    return HostTensor(values.reshape(-1).view(np.uint8), DType.FLOAT32, values.shape)
