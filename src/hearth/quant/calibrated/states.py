"""Hidden states between two layers, on disk: what a layer reads, for all calibration sequences.

One safetensors file a layer, `states` [sequences, length, hidden] float32: written under another
name until it is whole, with its identity in the header, so that a run that was killed goes on.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hearth.core.errors import WeightsError
from hearth.models.safetensors_file import TensorEntry, read_header, read_metadata
from hearth.models.safetensors_writer import SafetensorsWriter, TensorSpec
from hearth.models.weights import drop_pages, map_file

_NAME = "states"


class Write(Protocol):
    """Takes the states of one sequence, [1, length, hidden] float32."""

    def __call__(self, index: int, states: Tensor) -> None: ...


class StateFiles:
    """The state files of a run in one directory."""

    def __init__(
        self, directory: Path, shape: tuple[int, int, int], made: Mapping[str, str]
    ) -> None:
        """`made`: the metadata of a file that belongs to this run."""
        self._directory, self._shape, self._made = directory, shape, dict(made)

    @property
    def num_bytes(self) -> int:
        """Of one file."""
        return int(np.prod(self._shape)) * 4

    def path(self, layer: int) -> Path:
        """Of the states that a layer reads."""
        return self._directory / f"states-{layer:05}.safetensors"

    def has(self, layer: int) -> bool:
        """Whether they are there, whole and of this run."""
        try:
            entry = read_header(self.path(layer)).get(_NAME)
            made = read_metadata(self.path(layer))
        except (WeightsError, OSError):
            return False
        return (
            entry is not None and entry.shape == self._shape and self._made.items() <= made.items()
        )

    @contextmanager
    def writing(self, layer: int) -> Iterator[Write]:
        """The file has its name when the context ends well. Raises CapacityError, HearthError."""
        spec = TensorSpec(_NAME, "F32", self._shape)
        step = self._shape[1] * self._shape[2] * 4
        with SafetensorsWriter(self.path(layer), [spec], self._made) as writer:

            def write(index: int, states: Tensor) -> None:
                writer.write(_NAME, states.contiguous().numpy(), index * step)

            yield write

    def reading(self, layer: int) -> States:
        """Those that a layer reads."""
        return States(read_header(self.path(layer))[_NAME])

    def remove(self, layer: int) -> None:
        """Deletes a file that is not needed any more."""
        self.path(layer).unlink(missing_ok=True)


class States:
    """Read by memory map; a sequence that was read leaves memory again."""

    def __init__(self, entry: TensorEntry) -> None:
        self._entry = entry
        self._map: mmap.mmap = map_file(entry.path)

    def __len__(self) -> int:
        return self._entry.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        """One sequence's, [1, length, hidden]; a copy."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        count, length, hidden = self._entry.shape
        num_bytes = (self._entry.end - self._entry.begin) // count
        begin = self._entry.begin + index * num_bytes
        raw = np.frombuffer(self._map, np.uint8, num_bytes, begin)
        values = raw.view(np.float32).reshape(1, length, hidden).copy()
        drop_pages(self._map, begin, num_bytes)
        return torch.from_numpy(values)
