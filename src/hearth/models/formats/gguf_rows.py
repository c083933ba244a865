"""Rows of GGUF's tensor types (github.com/ggml-org/ggml, ggml-quants.c, `dequantize_row_…`).

A row is a run of blocks. In float32 and in ggml's order of operations, so that values are the same
bits. Queries and keys may lie in llama.cpp's order: of each head of Llama, row 2i + p is a
checkpoint's row p · half + i; of GLM-4 with M-RoPE the reverse, in the rows that are rotated. A
convolution over two frames lies in two tensors, one a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import WeightsError
from hearth.core.spec import CodesForm, DType
from hearth.kernels.packing import HostTensor
from hearth.models.formats.matrix import (
    FLOATS,
    Maps,
    StoredMatrix,
    StoredRows,
    find,
    floats_of,
    host_tensor,
)
from hearth.models.gguf.file import TYPES
from hearth.models.safetensors_file import Checkpoint

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_FLOATS = {"F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16}


@dataclass(frozen=True, slots=True)
class GgufMatrix(StoredMatrix):
    """A matrix in one tensor, whose type is the tensor's."""

    def read(self, first: int, count: int, maps: Maps) -> StoredRows | HostTensor:
        """See `StoredMatrix.read`."""
        raw = self._raw(first, count, maps)
        kind = self.main.dtype
        if kind in _FLOATS:
            shape = (count,) if len(self.main.shape) == 1 else (count, self.cols)
            return HostTensor(raw.reshape(-1), _FLOATS[kind], shape)
        if kind in _EXACT:
            blocks = raw.reshape(count, self.cols // 32, -1)
            scales = _halves(blocks[:, :, :2])[:, :, 0]
            codes = _EXACT[kind](blocks[:, :, 2:]).reshape(count, self.cols)
            return StoredRows(codes, scales, None, self.form.bits)
        return host_tensor(dequantized(kind, raw, self.cols))

    def _raw(self, first: int, count: int, maps: Maps) -> Bytes:
        """The rows' bytes, [count, bytes a row]; a copy."""
        size = self.row_bytes
        heads = self.form.heads
        if not heads:
            begin = self.main.begin + first * size
            flat = np.frombuffer(maps[self.main.path], np.uint8, count * size, begin)
            return flat.reshape(count, size).copy()
        whole = np.frombuffer(maps[self.main.path], np.uint8, self.rows * size, self.main.begin)
        rows = _places(self.form, np.arange(first, first + count), self.rows // heads)
        gathered: Bytes = whole.reshape(self.rows, size)[rows]
        return gathered


@dataclass(frozen=True, slots=True)
class FramesMatrix(StoredMatrix):
    """A convolution over two frames; `others`: the tensor of the second one."""

    def read(self, first: int, count: int, maps: Maps) -> HostTensor:
        """See `StoredMatrix.read`."""
        channels = self.main.shape[1]
        frames = [
            floats_of(entry, maps)[first : first + count].reshape(count, channels, 1, -1)
            for entry in self.entries
        ]
        return host_tensor(np.concatenate(frames, axis=2).reshape(count, self.cols))


def _places(form: CodesForm, rows: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where the file has a checkpoint's rows."""
    head, within = np.divmod(rows, head_dim)
    if form.rotary:
        index, part = np.divmod(within, 2)
        rotated = part * (form.rotary // 2) + index
        within = np.where(within < form.rotary, rotated, within)
    else:
        part, index = np.divmod(within, head_dim // 2)
        within = 2 * index + part
    places: NDArray[np.int64] = head * head_dim + within
    return places


def is_there(tensor: str, names: Collection[str]) -> bool:
    """See `forms.Rows`."""
    return tensor in names


def matrix(
    form: CodesForm, tensor: str, checkpoint: Checkpoint, shape: tuple[int, int]
) -> StoredMatrix:
    """See `forms.Rows`."""
    rows, cols = shape
    entry = checkpoint.tensors[tensor]
    second = checkpoint.tensors.get(f"{tensor}.1")
    held = (entry.shape[0], math.prod(entry.shape[1:]) * (1 if second is None else 2))
    if held != shape:
        raise WeightsError(
            f"{entry.path.name}: tensor {tensor}: shape is {list(entry.shape)}; the metadata make "
            f"it {list(shape)}"
        )
    if second is not None:
        others = (find(checkpoint, f"{tensor}.1", FLOATS, entry.shape),)
        main = find(checkpoint, tensor, FLOATS, entry.shape)
        return FramesMatrix(form, tensor, rows, cols, main, others)
    if form.heads and (rows % form.heads or form.rotary > rows // form.heads):
        raise WeightsError(
            f"{entry.path.name}: tensor {tensor} has {rows} rows for {form.heads} heads"
        )
    return GgufMatrix(form, tensor, rows, cols, entry, ())


def dequantized(kind: str, raw: Bytes, cols: int) -> Floats:
    """Rows of bytes as the values that they stand for, [rows, cols]."""
    block = next(t for t in TYPES.values() if t.name == kind)
    blocks = np.ascontiguousarray(raw).reshape(-1, block.num_bytes)
    return _DECODERS[kind](blocks).reshape(-1, cols)


def _halves(raw: Bytes) -> Floats:
    """float16 numbers from their bytes, in the last axis."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _low_high(raw: Bytes) -> Bytes:
    """The low nibbles of [..., n], then the high ones: [..., 2n]."""
    return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=-1)


def _as_signed(raw: Bytes) -> Bytes:
    """int8 as unsigned codes around 128."""
    return raw ^ np.uint8(128)


_EXACT: dict[str, Callable[[Bytes], Bytes]] = {"Q4_0": _low_high, "Q8_0": _as_signed}


def _q4_0(blocks: Bytes) -> Floats:
    return (_low_high(blocks[:, 2:]).astype(np.float32) - 8) * _halves(blocks[:, :2])


def _q4_1(blocks: Bytes) -> Floats:
    codes = _low_high(blocks[:, 4:]).astype(np.float32)
    return codes * _halves(blocks[:, :2]) + _halves(blocks[:, 2:4])


def _fifth_bits(raw: Bytes) -> Bytes:
    """32 bits, the first element's lowest, as 16 or 0: [n, 32]."""
    words = np.ascontiguousarray(raw).view("<u4")
    bits = words >> np.arange(32, dtype=np.uint32) & 1
    return (bits << 4).astype(np.uint8)


def _q5_0(blocks: Bytes) -> Floats:
    codes = _low_high(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (codes.astype(np.float32) - 16) * _halves(blocks[:, :2])


def _q5_1(blocks: Bytes) -> Floats:
    codes = _low_high(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return codes.astype(np.float32) * _halves(blocks[:, :2]) + _halves(blocks[:, 2:4])


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks[:, :2])


def _scales_and_minima(raw: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of 6 bits from 12 bytes; the last four are spread."""
    low, middle, high = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([low & 63, high & 15 | low >> 2 & 48], axis=1)
    minima = np.concatenate([middle & 63, high >> 4 | middle >> 2 & 48], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _with_offsets(blocks: Bytes, codes: Bytes) -> Floats:
    """D · scale · code − dmin · minimum, of eight groups of 32."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    steps = _halves(blocks[:, 0:2]) * scales
    offsets = _halves(blocks[:, 2:4]) * minima
    values = steps[:, :, None] * codes.astype(np.float32) - offsets[:, :, None]
    return values.reshape(len(blocks), -1)


def _q4_k(blocks: Bytes) -> Floats:
    codes = _low_high(blocks[:, 16:].reshape(-1, 4, 32))
    return _with_offsets(blocks, codes.reshape(-1, 8, 32))


def _q5_k(blocks: Bytes) -> Floats:
    low = _low_high(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return _with_offsets(blocks, (low | fifth << np.uint8(4)).astype(np.uint8))


def _q6_k(blocks: Bytes) -> Floats:
    """Two halves of 128; in each, four runs of 32 share a byte of high bits."""
    low = _low_high(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    codes = (low | high << np.uint8(4)).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    steps = _halves(blocks[:, 208:210]) * scales
    return (steps[:, :, None] * codes.reshape(-1, 16, 16)).reshape(len(blocks), -1)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
