"""A few rows of a model's matrices as its checkpoint has them, read without the rest.

For comparing what was packed, and what kernels make of it, with where it came from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hearth.core.spec import SlotKind, WeightSlot
from hearth.kernels.codes import row_values
from hearth.models.loader import LoadedSpec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.stored_rows import CodePiece, read_rows
from hearth.models.weight_plan import Piece, SlotPlan, plan_weights
from hearth.models.weights import elements, map_file


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows `indices` of a slot, [n]; what they hold, [n, cols] ([n, 1] of a vector)."""

    indices: NDArray[np.intp]
    values: NDArray[np.float32]


def sample_rows(
    loaded: LoadedSpec, names: Collection[str], num_rows: int
) -> dict[str, SampledRows]:
    """The first `num_rows` rows of the first and of the last part of each slot; all of a vector.

    Slots that are stored in a form of which single rows cannot be read are left out. Raises
    WeightsError for files that cannot be read.
    """
    checkpoint = read_checkpoint(loaded.path)
    plans = {p.slot.name: p for p in plan_weights(loaded.spec, checkpoint).slots}
    found = {}
    for name in names:
        sampled = _sample(plans[name], num_rows)
        if sampled is not None:
            found[name] = sampled
    return found


def _sample(plan: SlotPlan, num_rows: int) -> SampledRows | None:
    is_vector = plan.slot.kind is SlotKind.VECTOR
    ends = plan.pieces if is_vector else dict.fromkeys((plan.pieces[0], plan.pieces[-1]))
    indices, values = [], []
    for piece in ends:
        rows = _rows_of(plan.slot, piece, num_rows)
        if rows is None:
            return None
        indices.append(np.arange(len(rows)) + piece.slot_row)
        values.append(rows)
    return SampledRows(np.concatenate(indices), np.concatenate(values))


def _rows_of(slot: WeightSlot, piece: object, num_rows: int) -> NDArray[np.float32] | None:
    """The first rows of a piece, [n, cols]; None: of a form that is not known here."""
    if isinstance(piece, CodePiece):
        part = replace(piece, num_rows=min(num_rows, piece.num_rows))
        maps = {entry.path: map_file(entry.path) for entry in piece.source.entries}
        rows = read_rows(slot, part, maps)
        return row_values(rows, slot.quant)[:, : slot.cols]
    if not isinstance(piece, Piece):
        return None
    total = piece.shape[0]
    count = total if slot.kind is SlotKind.VECTOR else min(num_rows, total)
    data = np.frombuffer(
        map_file(piece.path), np.uint8, piece.num_bytes // total * count, piece.begin
    )
    rows = elements(data.copy(), piece.dtype).reshape(count, -1)
    result: NDArray[np.float32] = rows + np.float32(slot.offset)
    return result
