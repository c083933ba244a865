"""Where the weights of transformers' modules lie in a checkpoint, and reading them.

Most have the same name in both. What transformers renames or stacks when it loads a model (experts)
is found through the names that hearth's own family files have for the same rows.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hearth.core.errors import ModelError, WeightsError
from hearth.core.spec import WeightSlot, WeightSource
from hearth.models.safetensors_file import Checkpoint, TensorEntry
from hearth.models.weights import drop_pages, map_file

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a checkpoint's tensor that become rows of a module's, behind those before it."""

    entry: TensorEntry
    first_row: int
    num_rows: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.num_rows == (self.entry.shape[0] if self.entry.shape else 1)


class TensorReader:
    """Reads tensors of a checkpoint through memory maps, whose pages it gives back."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def map_of(self, path: Path) -> mmap.mmap:
        """The map of a file."""
        if path not in self._maps:
            self._maps[path] = map_file(path)
        return self._maps[path]

    def rows(self, parts: Sequence[Part]) -> Tensor:
        """Rows behind each other, float32, with what columns they have. Raises WeightsError."""
        return torch.cat([self._read(part) for part in parts])

    def some_rows(self, entry: TensorEntry, rows: NDArray[np.int64]) -> Tensor:
        """Rows of a matrix by their numbers, float32."""
        kind = _dtype(entry)
        data = np.frombuffer(
            self.map_of(entry.path), np.uint8, entry.end - entry.begin, entry.begin
        )
        table = data.reshape(entry.shape[0], -1)[rows]
        return torch.from_numpy(table).view(kind).float()

    def _read(self, part: Part) -> Tensor:
        entry, kind = part.entry, _dtype(part.entry)
        shape = entry.shape or (1,)
        # Of a stack of matrices the first two dimensions count as rows.
        cols = shape[-1] if len(shape) > 1 else 1
        begin = entry.begin + part.first_row * cols * kind.itemsize
        num_bytes = part.num_rows * cols * kind.itemsize
        mapped = self.map_of(entry.path)
        data = np.frombuffer(mapped, np.uint8, num_bytes, begin).copy()
        drop_pages(mapped, begin, num_bytes)
        values = torch.from_numpy(data).view(kind).float()
        return values.reshape(-1, cols) if len(shape) > 1 else values


def _dtype(entry: TensorEntry) -> torch.dtype:
    if entry.dtype not in _DTYPES:
        raise WeightsError(
            f"{entry.path.name}: tensor {entry.name}: dtype is {entry.dtype}; permitted: "
            f"{', '.join(_DTYPES)}",
            hint="it seems to be quantized already",
        )
    return _DTYPES[entry.dtype]


class LayerTensors:
    """Which of a checkpoint's tensors make up a decoder layer."""

    def __init__(self, checkpoint: Checkpoint, slots: Sequence[WeightSlot]) -> None:
        self._tensors = checkpoint.tensors
        self._rows: dict[str, list[Part]] = {}
        for slot in slots:
            for source in slot.sources:
                part = self._present(source)
                if part is not None:
                    for name in _names(source):
                        self._rows.setdefault(name, []).append(part)

    def prefix(self, layer: int, names: Sequence[str]) -> str:
        """What the checkpoint has before the names of a layer's modules: "model.layers.3.".

        Raises ModelError where the checkpoint has no layer with these names.
        """
        marker = f"layers.{layer}."
        counts: dict[str, int] = {}
        for name in self._tensors:
            head, found, tail = name.partition(marker)
            if found and tail in names:
                counts[head + marker] = counts.get(head + marker, 0) + 1
        if not counts:
            raise ModelError(
                f"the checkpoint has no tensors of layer {layer} under transformers' names",
                hint="quantize it with --method rtn, which needs no transformers",
            )
        return max(counts, key=lambda head: counts[head])

    def of_layer(self, prefix: str) -> list[TensorEntry]:
        """All tensors of a layer."""
        return [entry for name, entry in self._tensors.items() if name.startswith(prefix)]

    def parts(self, prefix: str, name: str) -> list[Part]:
        """Of a module's tensor `name`, in order. Raises ModelError where there are none."""
        entry = self._tensors.get(prefix + name)
        if entry is not None:
            return [Part(entry, 0, _num_rows(entry))]
        marker = prefix[prefix.index("layers.") :] + name
        for known, parts in self._rows.items():
            if known.endswith("." + marker):
                return parts
        raise ModelError(
            f"the checkpoint has no tensor {prefix}{name}",
            hint="its files are not what transformers expects; --method rtn needs no transformers",
        )

    def _present(self, source: WeightSource) -> Part | None:
        current: WeightSource | None = source
        while current is not None:
            if (entry := self._tensors.get(current.tensor)) is not None:
                return Part(entry, current.first_row, current.num_rows or _num_rows(entry))
            current = current.otherwise
        return None


def slice_of(parts: Sequence[Part], first: int, count: int) -> list[Part]:
    """Those of `parts` that are `count` rows from `first` on; they begin and end there."""
    found, row = [], 0
    for part in parts:
        if first <= row < first + count:
            found.append(part)
        row += part.num_rows
    return found


def _num_rows(entry: TensorEntry) -> int:
    rows = 1
    for size in entry.shape[: max(1, len(entry.shape) - 1)]:
        rows *= size
    return rows


def _names(source: WeightSource) -> Iterator[str]:
    current: WeightSource | None = source
    while current is not None:
        yield current.tensor
        current = current.otherwise
