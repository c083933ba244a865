"""Writes a safetensors file of known tensors, whose bytes come in any order.

The header is written first, from names, types and shapes; space for all of it is reserved, so that
a full disk is an error before the work and not in its middle. Tensors of wider elements come first,
so that each is aligned to its own. The file has its name only when all of it is on the disk.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, HearthError
from hearth.core.units import format_bytes, round_up
from hearth.models.safetensors_file import ELEMENT_BYTES

_ALIGNMENT = 8
_PART = ".part"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that will be written; `dtype` as the format names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


class SafetensorsWriter:
    """A context: leaves the whole file under its name, or, after an error, none.

    `write` may be called by several threads.
    """

    def __init__(
        self, path: Path, tensors: Iterable[TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        """Raises CapacityError for a full disk, HearthError where it cannot be written."""
        self._path = path
        self._part = path.with_name(path.name + _PART)
        ordered = sorted(tensors, key=lambda t: (-ELEMENT_BYTES[t.dtype], t.name))
        offsets = _offsets(ordered)
        header = _header(ordered, offsets, metadata)
        self._begin = {name: len(header) + begin for name, (begin, _) in offsets.items()}
        total = len(header) + sum(tensor.num_bytes for tensor in ordered)
        try:
            self._fd = os.open(
                self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise _disk_error(self._path, error, total) from error
        try:
            os.posix_fallocate(self._fd, 0, total)
            _write(self._fd, memoryview(header), 0)
        except OSError as error:
            self._discard()
            raise _disk_error(self._path, error, total) from error

    def write(self, name: str, data: NDArray[Any], offset: int = 0) -> None:
        """Writes bytes of a tensor from its byte `offset` on. Raises CapacityError, HearthError."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        try:
            _write(self._fd, raw, self._begin[name] + offset)
        except OSError as error:
            raise _disk_error(self._path, error, len(raw)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            os.fsync(self._fd)
            os.close(self._fd)
            self._part.replace(self._path)
        except OSError as failure:
            raise _disk_error(self._path, failure, 0) from failure

    def _discard(self) -> None:
        os.close(self._fd)
        self._part.unlink(missing_ok=True)


def _offsets(tensors: list[TensorSpec]) -> dict[str, tuple[int, int]]:
    offsets, begin = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = (begin, begin + tensor.num_bytes)
        begin += tensor.num_bytes
    return offsets


def _header(
    tensors: list[TensorSpec], offsets: Mapping[str, tuple[int, int]], metadata: Mapping[str, str]
) -> bytes:
    values: dict[str, object] = {"__metadata__": dict(metadata)}
    for tensor in tensors:
        values[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": offsets[tensor.name],
        }
    text = json.dumps(values, separators=(",", ":")).encode()
    text = text.ljust(round_up(len(text), _ALIGNMENT))
    return len(text).to_bytes(8, "little") + text


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _disk_error(path: Path, error: OSError, num_bytes: int) -> HearthError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CapacityError(
            f"{path} needs {format_bytes(num_bytes)}: {error.strerror}",
            hint="free space, or name a directory on a larger disk",
        )
    return HearthError(f"{path} cannot be written: {error.strerror}")
