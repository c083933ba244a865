"""What a checkpoint's headers say of it: whether the model can be loaded from it, and in what.

No tensor is read, so that the weights may still be on a hub.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hearth.core.spec import DType
from hearth.models.loader import LoadedSpec
from hearth.models.safetensors_file import Checkpoint
from hearth.models.weight_plan import READABLE, Piece, plan_weights


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """`num_bytes`: of all tensors; `used_bytes`: of those that the model has a place for.

    `dtypes`: bytes by the format's name of the type, the most first.
    """

    num_files: int
    num_tensors: int
    num_bytes: int
    used_bytes: int
    dtypes: dict[str, int]
    notes: tuple[str, ...]


def stored_weights(loaded: LoadedSpec, checkpoint: Checkpoint) -> StoredWeights:
    """Compares every tensor with its place in the model.

    Raises WeightsError for a tensor that is missing, of another shape, or that cannot be read.
    """
    plan = plan_weights(loaded.spec, checkpoint)
    entries = checkpoint.tensors.values()
    dtypes: Counter[str] = Counter()
    for entry in entries:
        dtypes[entry.dtype] += entry.end - entry.begin
    used: Counter[DType] = Counter()
    for piece in (piece for slot in plan.slots for piece in slot.pieces):
        if isinstance(piece, Piece) and len(piece.shape) > 1:  # vectors are float32 always
            used[piece.dtype] += piece.num_bytes
    return StoredWeights(
        num_files=len({entry.path for entry in entries}),
        num_tensors=len(entries),
        num_bytes=dtypes.total(),
        used_bytes=plan.num_bytes,
        dtypes=dict(dtypes.most_common()),
        notes=(*plan.warnings, *plan.conversions, *_other_precision(loaded, used)),
    )


def _other_precision(loaded: LoadedSpec, used: Counter[DType]) -> tuple[str, ...]:
    """Where most bytes are of another type than the one that is computed with."""
    stored = max(used, key=used.__getitem__, default=loaded.dtype)
    if stored is loaded.dtype:
        return ()
    name = next(name for name, dtype in READABLE.items() if dtype is stored)
    served = f"the weights are stored as {name} and served as {loaded.dtype}"
    if loaded.dtype is not DType.FLOAT32:
        return (f"{served} ({loaded.dtype_reason}): they are rounded when they are loaded",)
    return (f"{served} ({loaded.dtype_reason}): --dtype {stored} keeps them exactly, in half",)
