"""Rows of bitsandbytes' codes.

4 bits: `weight` uint8, two codes a byte, the first in the high nibble, over the matrix row by row;
a value is `quant_map`[code] times the scale of its block of `blocksize` neighbouring elements.
Scales are `absmax`, or, of nested quantization, `nested_quant_map`[absmax] times the
`nested_absmax` of 256 (`nested_blocksize`) scales plus `nested_offset`. `quant_state.…`: JSON with
sizes and offset. INT8: `weight` int8, a row's scale is `SCB` / 127.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.packing import HostTensor
from hearth.models.config_json import shown
from hearth.models.formats.bitsandbytes import INT8, KINDS, STATE
from hearth.models.formats.matrix import (
    Maps,
    StoredMatrix,
    StoredRows,
    bytes_of,
    find,
    floats_of,
    host_tensor,
)
from hearth.models.safetensors_file import Checkpoint, TensorEntry

_MIDDLE = 128
_LARGEST = 127
_MOST_BYTES = 1 << 16  # of a JSON text of a few numbers


@dataclass(frozen=True, slots=True)
class Int8Matrix(StoredMatrix):
    """`others`: the scales."""

    def read(self, first: int, count: int, maps: Maps) -> StoredRows:
        """See `StoredMatrix.read`."""
        codes = bytes_of(self.main, maps)[first : first + count] ^ np.uint8(_MIDDLE)
        scales = floats_of(self.others[0], maps)[first : first + count] / np.float32(_LARGEST)
        return StoredRows(codes, scales[:, None], None, 8)


@dataclass(frozen=True, slots=True)
class FourBitMatrix(StoredMatrix):
    """`others`: state, map, scales, and of nested scales their own scales and map."""

    def read(self, first: int, count: int, maps: Maps) -> HostTensor:
        """See `StoredMatrix.read`."""
        state = _state(self.others[0], (self.rows, self.cols), maps)
        begin, end = first * self.cols, (first + count) * self.cols
        raw = bytes_of(self.main, maps).reshape(-1)[begin // 2 : -(-end // 2)]
        codes = np.stack([raw >> np.uint8(4), raw & np.uint8(15)], axis=1).reshape(-1)
        codes = codes[begin % 2 : begin % 2 + end - begin]
        size = _positive(self.others[0], state, "blocksize")
        blocks = np.arange(begin // size, -(-end // size))
        scales = np.repeat(self._scales(blocks, state, maps), size)[begin % size :][: end - begin]
        values = floats_of(self.others[1], maps)[codes] * scales
        return host_tensor(values.reshape(count, self.cols))

    def _scales(
        self, blocks: NDArray[np.int64], state: dict[str, Any], maps: Maps
    ) -> NDArray[np.float32]:
        """Of some blocks."""
        absmax = self.others[2]
        size = _positive(self.others[0], state, "blocksize")
        if absmax.shape[0] != -(-self.rows * self.cols // size):
            raise WeightsError(
                f"{absmax.path.name}: tensor {absmax.name}: {absmax.shape[0]} scales for "
                f"{self.rows * self.cols} elements in blocks of {size}"
            )
        if absmax.dtype == "F32":
            return floats_of(absmax, maps)[blocks]
        outer, table = (floats_of(entry, maps) for entry in self.others[3:5])
        offset = state.get("nested_offset", 0.0)
        outer_blocks = blocks // _positive(self.others[0], state, "nested_blocksize")
        if not isinstance(offset, int | float) or outer_blocks.max(initial=0) >= len(outer):
            raise _wrong(self.others[0], "nested_offset", offset)
        inner = table[bytes_of(absmax, maps)[blocks]]
        scales: NDArray[np.float32] = inner * outer[outer_blocks] + np.float32(offset)
        return scales


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `forms.Rows`."""
    module = tensor.removesuffix(".weight")
    return f"{module}.SCB" in names or any(f"{tensor}{STATE}{kind}" in names for kind in KINDS)


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> StoredMatrix:
    """See `forms.Rows`."""
    rows, cols = shape
    if form.format == INT8:
        codes = find(checkpoint, tensor, ("I8",), shape)
        scales = find(checkpoint, f"{tensor.removesuffix('.weight')}.SCB", ("F32",), (rows,))
        return Int8Matrix(form, tensor, rows, cols, codes, (scales,))
    codes = find(checkpoint, tensor, ("U8",), (-(-rows * cols // 2), 1))
    names = [f"{tensor}{STATE}{kind}" for kind in KINDS]
    name = next(name for name in names if name in checkpoint.tensors)
    state = find(checkpoint, name, ("U8",), checkpoint.tensors[name].shape)
    others = [state, find(checkpoint, f"{tensor}.quant_map", ("F32",), (16,))]
    absmax = checkpoint.tensors.get(f"{tensor}.absmax")
    count = (0,) if absmax is None or len(absmax.shape) != 1 else absmax.shape
    absmax = find(checkpoint, f"{tensor}.absmax", ("F32", "U8"), count)
    others.append(absmax)
    if absmax.dtype == "U8":
        outer = checkpoint.tensors.get(f"{tensor}.nested_absmax")
        count = (0,) if outer is None or len(outer.shape) != 1 else outer.shape
        others.append(find(checkpoint, f"{tensor}.nested_absmax", ("F32",), count))
        others.append(find(checkpoint, f"{tensor}.nested_quant_map", ("F32",), (256,)))
    return FourBitMatrix(form, tensor, rows, cols, codes, tuple(others))


def _state(entry: TensorEntry, shape: tuple[int, int], maps: Maps) -> dict[str, Any]:
    """The numbers of a matrix; its shape must be the configuration's."""
    if entry.end - entry.begin > _MOST_BYTES:
        raise WeightsError(f"{entry.path.name}: tensor {entry.name} is no small JSON text")
    raw = bytes(maps[entry.path][entry.begin : entry.end])
    try:
        state = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{entry.path.name}: tensor {entry.name} is no JSON: {error}") from error
    if not isinstance(state, dict) or state.get("shape") != list(shape):
        value = state.get("shape") if isinstance(state, dict) else state
        raise WeightsError(
            f"{entry.path.name}: {entry.name}: shape is {shown(value)}; config.json makes it "
            f"{list(shape)}"
        )
    return state


def _positive(entry: TensorEntry, state: dict[str, Any], key: str) -> int:
    value = state.get(key)
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise _wrong(entry, key, value)
    return value


def _wrong(entry: TensorEntry, key: str, value: object) -> WeightsError:
    return WeightsError(
        f"{entry.path.name}: {entry.name}: {key} is {shown(value)}, which does not fit its scales"
    )
