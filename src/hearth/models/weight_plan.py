"""Which rows of which checkpoint tensor go where, all checked before a byte is read.

A tensor must have exactly the rows that the slots take from it, and their columns. Pieces are
small enough that the mapped pages of one piece are a negligible part of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from hearth.core.errors import WeightsError
from hearth.core.spec import DType, ModelSpec, SlotKind, WeightSlot, WeightSource
from hearth.models.formats.biases import added_biases
from hearth.models.formats.forms import rows_of
from hearth.models.formats.matrix import CodePiece
from hearth.models.formats.placing import planned_conversions
from hearth.models.safetensors_file import Checkpoint, TensorEntry

PIECE_BYTES = 8 << 20
# Packing works in panels of columns: pieces that begin at a panel are packed without a seam.
_PIECE_ROWS = 64

TIED_HEAD = "lm_head.weight"
READABLE = {"F32": DType.FLOAT32, "BF16": DType.BFLOAT16, "F16": DType.FLOAT16}
_QUANTIZED_HINT = (
    "these are codes of a form that config.json does not declare (quantization_config); "
    "docs/quantization.md lists the forms that hearth reads"
)
# Buffers that old checkpoints carry and that are computed from the config.
# And of quantized ones: shapes that the configuration gives, too; scales of activations, which are
# rounded by hearth's own rule; GPTQ's groups of columns; the order of bytes of INT8, of which only
# one is saved.
_HARMLESS = (
    ".rotary_emb.inv_freq",
    ".weight_shape",
    ".input_scale",
    ".g_idx",
    ".weight_format",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows: `num_bytes` from byte `begin` of the file, to the slot from `slot_row`."""

    entry: TensorEntry
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    num_bytes: int
    slot_row: int

    @property
    def path(self) -> Path:
        """The file that holds them."""
        return self.entry.path

    @property
    def touched(self) -> range:
        """The bytes of the file that reading them touches."""
        return range(self.begin, self.begin + self.num_bytes)


AnyPiece: TypeAlias = Piece | CodePiece


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """The pieces of one slot, by ascending row."""

    slot: WeightSlot
    pieces: tuple[AnyPiece, ...]


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Everything that is to be read. `conversions`: of forms that no kernel has, before any."""

    slots: tuple[SlotPlan, ...]
    num_bytes: int
    num_tensors: int
    warnings: tuple[str, ...]
    conversions: tuple[str, ...] = ()


def plan_weights(spec: ModelSpec, checkpoint: Checkpoint) -> WeightPlan:
    """Plans the load. Raises WeightsError for missing tensors, wrong dtypes and shapes."""
    resolved = [_resolve(slot, checkpoint) for slot in spec.slots]
    needed = _rows_needed(resolved)
    _check_missing(resolved, checkpoint)
    for slot in resolved:
        for index, source in enumerate(slot.sources):
            if slot.form(index) is None:
                _check_tensor(slot, checkpoint.tensors[source.tensor], needed[source.tensor])
    slots = tuple(SlotPlan(slot, tuple(_pieces(slot, checkpoint, needed))) for slot in resolved)
    used = {entry.name for plan in slots for piece in plan.pieces for entry in _entries(piece)}
    return WeightPlan(
        slots=slots,
        num_bytes=sum(piece.num_bytes for plan in slots for piece in plan.pieces),
        num_tensors=len(used),
        warnings=_unexpected(spec, used, checkpoint),
        conversions=planned_conversions(resolved),
    )


def _entries(piece: AnyPiece) -> tuple[TensorEntry, ...]:
    return piece.source.entries if isinstance(piece, CodePiece) else (piece.entry,)


def _resolve(slot: WeightSlot, checkpoint: Checkpoint) -> WeightSlot:
    """The slot with the sources that the checkpoint has; one that it lacks stays as it is."""

    def resolve(index: int, source: WeightSource) -> WeightSource:
        candidate: WeightSource | None = source
        while candidate is not None and not _is_there(candidate.tensor, slot, index, checkpoint):
            candidate = candidate.otherwise
        return candidate or source

    return replace(slot, sources=tuple(resolve(i, source) for i, source in enumerate(slot.sources)))


def _is_there(tensor: str, slot: WeightSlot, index: int, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has a tensor for the slot's source `index`, in its form."""
    form = slot.form(index)
    if form is not None:
        return rows_of(form).is_there(tensor, checkpoint.tensors)
    return tensor in checkpoint.tensors


def _rows_needed(slots: Sequence[WeightSlot]) -> dict[str, int]:
    """Rows that each checkpoint tensor must have: up to the last one that a slot takes.

    A source of 0 rows takes the whole tensor, which is then the slot's only one.
    """
    needed: dict[str, int] = {}
    for slot in slots:
        for source in slot.sources:
            last = source.first_row + (source.num_rows or slot.total_rows)
            needed[source.tensor] = max(needed.get(source.tensor, 0), last)
    return needed


def _check_missing(slots: Sequence[WeightSlot], checkpoint: Checkpoint) -> None:
    sources = [(slot, i, s.tensor) for slot in slots for i, s in enumerate(slot.sources)]
    needed = dict.fromkeys(name for _, _, name in sources)
    missing = list(
        dict.fromkeys(name for slot, i, name in sources if not _is_there(name, slot, i, checkpoint))
    )
    if not missing:
        return
    hint = None
    if missing == [TIED_HEAD]:
        hint = "if its head is its embedding, set tie_word_embeddings to true in config.json"
    elif _are_quantized(missing, checkpoint):
        hint = _QUANTIZED_HINT
    else:
        other = next((n for n in checkpoint.tensors if n.endswith("." + missing[0])), None)
        if other is not None:
            hint = f"the checkpoint has {other}: its names carry another prefix"
    raise WeightsError(
        f"{len(missing)} of {len(list(needed))} tensors are missing from the checkpoint, which "
        f"holds {len(checkpoint.tensors)}: {_listing(missing)}",
        hint=hint,
    )


def _are_quantized(missing: Iterable[str], checkpoint: Checkpoint) -> bool:
    """Whether codes stand beside a weight's place: `q_proj.qweight`, `q_proj.weight_packed`."""
    quantized = {
        name.rpartition(".")[0]
        for name, entry in checkpoint.tensors.items()
        if entry.dtype not in READABLE
    }
    return any(name.rpartition(".")[0] in quantized for name in missing)


def _check_tensor(slot: WeightSlot, entry: TensorEntry, rows: int) -> None:
    where = f"{entry.path.name}: tensor {entry.name}"
    if entry.dtype not in READABLE:
        raise WeightsError(
            f"{where}: dtype is {entry.dtype}; permitted: {', '.join(READABLE)}",
            hint=_QUANTIZED_HINT,
        )
    expected = (rows,) if slot.kind is SlotKind.VECTOR else (rows, slot.cols)
    shape = entry.shape
    if slot.stack > 1 and len(shape) == 3:  # the matrices of all experts in one tensor
        shape = (math.prod(shape[:2]), shape[2])
    elif len(shape) > len(expected) > 1:  # a convolution: what an output reads is a row
        shape = (shape[0], math.prod(shape[1:]))
    if shape != expected:
        raise WeightsError(
            f"{where}: shape is {list(entry.shape)}; config.json makes it {list(expected)}"
        )


def _pieces(
    slot: WeightSlot, checkpoint: Checkpoint, needed: Mapping[str, int]
) -> Iterable[AnyPiece]:
    slot_row = 0
    for index, source in enumerate(slot.sources):
        num_rows = source.num_rows or slot.total_rows
        form = slot.form(index)
        if form is None:
            yield from _split(slot, source, checkpoint.tensors[source.tensor], slot_row)
        else:
            shape = (needed[source.tensor], slot.cols)
            matrix = rows_of(form).matrix(form, source.tensor, checkpoint, shape)
            # What is converted, or rounded once more, passes through several arrays of float32.
            is_rounded = form.format == "fp8" and not slot.quant.is_float
            share = 8 if form.converted or is_rounded else 2
            step = max(_PIECE_ROWS, PIECE_BYTES // (share * slot.cols) // _PIECE_ROWS * _PIECE_ROWS)
            for first in range(0, num_rows, step):
                count = min(step, num_rows - first)
                yield CodePiece(matrix, source.first_row + first, count, slot_row + first)
        slot_row += num_rows


def _split(
    slot: WeightSlot, source: WeightSource, entry: TensorEntry, slot_row: int
) -> Iterable[Piece]:
    dtype = READABLE[entry.dtype]
    row_bytes = slot.cols * dtype.num_bytes
    step = max(1, PIECE_BYTES // row_bytes)
    if step > _PIECE_ROWS:
        step -= step % _PIECE_ROWS
    total = source.num_rows or slot.total_rows
    for first in range(0, total, step):
        rows = min(step, total - first)
        yield Piece(
            entry=entry,
            dtype=dtype,
            shape=(rows,) if slot.kind is SlotKind.VECTOR else (rows, slot.cols),
            begin=entry.begin + (source.first_row + first) * row_bytes,
            num_bytes=rows * row_bytes,
            slot_row=slot_row + first,
        )


def _unexpected(spec: ModelSpec, used: set[str], checkpoint: Checkpoint) -> tuple[str, ...]:
    harmless = {TIED_HEAD} if spec.tied else set()
    names = sorted(
        name for name in set(checkpoint.tensors) - used - harmless if not name.endswith(_HARMLESS)
    )
    added = added_biases(names, checkpoint.tensors)
    left = [name for name in names if name not in added]
    found = []
    if added:
        found.append(
            f"{len(added)} biases are left out, for which the architecture has no place (they must "
            "be zeros, and are refused where they are not)"
        )
    if left:
        found.append(f"{len(left)} tensors of the checkpoint are not used: {_listing(left)}")
    return tuple(found)


def _listing(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
