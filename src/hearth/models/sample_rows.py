"""A few rows of a model's matrices as its checkpoint has them, read without the rest.

For comparing what was packed, and what kernels make of it, with where it came from.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import SlotKind, WeightSlot
from hearth.kernels.codes import row_values
from hearth.kernels.packing import CodeRows, HostTensor
from hearth.models.formats.placing import Losses
from hearth.models.loader import LoadedSpec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.weight_plan import AnyPiece, Piece, SlotPlan, plan_weights
from hearth.models.weights import elements, hand_over, map_file


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows `indices` of a slot, [n]; what they hold, [n, cols] ([n, 1] of a vector)."""

    indices: NDArray[np.intp]
    values: NDArray[np.float32]


def sample_rows(
    loaded: LoadedSpec, names: Collection[str], num_rows: int
) -> dict[str, SampledRows]:
    """The first `num_rows` rows of the first and of the last part of each slot; all of a vector.

    Raises WeightsError for files that cannot be read.
    """
    checkpoint = read_checkpoint(loaded.path)
    plans = {p.slot.name: p for p in plan_weights(loaded.spec, checkpoint).slots}
    maps: Mapping[Path, mmap.mmap] = _Maps()
    return {name: _sample(plans[name], num_rows, maps) for name in names}


class _Maps(dict[Path, mmap.mmap]):
    """Files, mapped when they are first asked for."""

    def __missing__(self, path: Path) -> mmap.mmap:
        self[path] = map_file(path)
        return self[path]


@dataclass(slots=True)
class _Values:
    """A WeightSink that keeps what it is given as float32."""

    indices: list[NDArray[np.intp]] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """See WeightSink."""
        self._keep(first_row, elements(tensor.data, tensor.dtype).reshape(tensor.shape[0], -1))

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """See WeightSink."""
        self._keep(first_row, row_values(rows, slot.quant)[:, : slot.cols])

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """Not asked for."""
        raise NotImplementedError

    def _keep(self, first_row: int, values: NDArray[np.float32]) -> None:
        self.indices.append(np.arange(len(values)) + first_row)
        self.values.append(values)


def _sample(plan: SlotPlan, num_rows: int, maps: Mapping[Path, mmap.mmap]) -> SampledRows:
    sink = _Values()
    if plan.slot.kind is SlotKind.VECTOR:
        for piece in plan.pieces:
            hand_over(plan.slot, piece, maps, sink, Losses())
    else:
        for piece in dict.fromkeys((plan.pieces[0], plan.pieces[-1])):
            hand_over(plan.slot, _beginning(piece, num_rows), maps, sink, Losses())
    return SampledRows(np.concatenate(sink.indices), np.concatenate(sink.values))


def _beginning(piece: AnyPiece, num_rows: int) -> AnyPiece:
    """The first rows of a piece."""
    if not isinstance(piece, Piece):
        return replace(piece, num_rows=min(num_rows, piece.num_rows))
    total = piece.shape[0]
    count = min(num_rows, total)
    shape = (count, *piece.shape[1:])
    return replace(piece, shape=shape, num_bytes=piece.num_bytes // total * count)
