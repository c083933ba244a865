"""Where the reference executor keeps keys and values: paged, or only those of the pass itself.

`PagedKv` honours slots and block tables of a plan; writing into it is not differentiable.
`PassKv` holds what one pass computed, for sequences that start at their first token; gradients
flow through it (calibration, training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hearth.core.program import KvGroupSpec
from hearth.core.spec import DType, KvDType
from hearth.core.step import KvConfig
from hearth.kernels.packing import KV_SCALE_COLUMNS
from hearth.kernels.reference.kv_codes import Coded, code_keys, code_values
from hearth.kernels.reference.weights import torch_dtype


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows `first_row` … `last_row` − 1 of a pass, which continue `context` cached tokens."""

    first_row: int
    last_row: int
    context: int


@dataclass(frozen=True, slots=True)
class GroupTables:
    """One KV group's part of a plan.

    `slots` [T]; per sequence the block ids and the index of the first listed block.
    """

    slots: torch.Tensor
    blocks: tuple[torch.Tensor, ...]
    first_block: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepTensors:
    """The input of a pass: tokens [T] ≥ 0, positions [3, T], sequences, wanted rows [R].

    `features` [E, hidden] stand at the rows `feature_rows` [E] instead of their tokens. A pass
    through an encoder has `patches` [T, values] of an image of `grid` (height, width) patches.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    sequences: tuple[SequenceRows, ...]
    logit_rows: torch.Tensor
    groups: tuple[GroupTables, ...] = ()
    feature_rows: torch.Tensor | None = None
    features: torch.Tensor | None = None
    patches: torch.Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    windows: torch.Tensor | None = None  # [T]; the number of each patch's window


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values [n, num_kv_heads, head_dim], float32, from token `first_index` on.

    `coded`: the codes and scales of the values, where they are stored as such.
    """

    keys: torch.Tensor
    values: torch.Tensor
    first_index: int
    coded: Coded | None = None


@dataclass(frozen=True, slots=True)
class KvPlace:
    """A layer within a KV group."""

    group: int
    layer: int


class KvStore(Protocol):
    """Takes the keys and values of a pass in and gives those of a sequence."""

    @property
    def dtype(self) -> KvDType:
        """How they are stored."""
        ...

    @property
    def rotates_keys(self) -> bool:
        """Whether keys are stored rotated, so that queries have to be."""
        ...

    def write(
        self, step: StepTensors, place: KvPlace, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Stores all rows, [T, num_kv_heads, head_dim]."""
        ...

    def read(self, step: StepTensors, place: KvPlace, index: int) -> KeysValues:
        """Those of sequence `index`, up to its last row of this pass, as stored."""
        ...


class PagedKv:
    """Blocks of every group in torch tensors, [layers, blocks · block_size, kv heads, dim].

    Codes are kept as the float32 numbers they are, their scales beside them.
    """

    def __init__(
        self, groups: Sequence[KvGroupSpec], config: KvConfig, device: str = "cpu"
    ) -> None:
        self._block_size = config.block_size
        self._dtype = KvDType(config.dtype)
        self._rotates_keys = config.rotates_keys and self._dtype is KvDType.INT4
        is_coded = self._dtype.is_coded
        dtype = torch.float32 if is_coded else torch_dtype(DType(config.dtype))
        shapes = [
            (g.num_layers, num_blocks * config.block_size, g.num_kv_heads, g.head_dim)
            for g, num_blocks in zip(groups, config.num_blocks)
        ]
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._scales = [_scales(shape, self._dtype) for shape in shapes] if is_coded else []

    @property
    def dtype(self) -> KvDType:
        """See `KvStore`."""
        return self._dtype

    @property
    def rotates_keys(self) -> bool:
        """See `KvStore`."""
        return self._rotates_keys

    def copy_block(self, group: int, source: int, target: int) -> None:
        """Copies one block, all layers."""
        size = self._block_size
        scales = self._scales[group] if self._scales else ()
        for stored in (self._keys[group], self._values[group], *scales):
            rows = stored[:, source * size : (source + 1) * size]
            stored[:, target * size : (target + 1) * size] = rows.clone()

    def write(
        self, step: StepTensors, place: KvPlace, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """See `KvStore.write`."""
        slots = step.groups[place.group].slots
        if self._dtype.is_coded:
            coded = (
                code_keys(keys, self._dtype, rotated=self._rotates_keys),
                code_values(values, self._dtype),
            )
            for scales, of in zip(self._scales[place.group], coded):
                scales[place.layer][slots] = of.scales
            keys, values = coded[0].codes, coded[1].codes
        for stored, rows in ((self._keys, keys), (self._values, values)):
            layer = stored[place.group][place.layer]
            layer[slots] = rows.to(layer.dtype)

    def read(self, step: StepTensors, place: KvPlace, index: int) -> KeysValues:
        """See `KvStore.read`."""
        first_index = step.groups[place.group].first_block[index] * self._block_size
        return self.gather(place, self.slots_of(step, place.group, index), first_index)

    def slots_of(self, step: StepTensors, group: int, index: int) -> torch.Tensor:
        """Slots of sequence `index` from its first listed block to its last row of this pass."""
        tables, rows = step.groups[group], step.sequences[index]
        size, blocks = self._block_size, tables.blocks[index]
        num_keys = rows.context + rows.last_row - rows.first_row
        num_listed = num_keys - tables.first_block[index] * size
        offsets = torch.arange(size, device=blocks.device)
        return (blocks[:, None] * size + offsets).flatten()[:num_listed]

    def gather(self, place: KvPlace, slots: torch.Tensor, first_index: int) -> KeysValues:
        """What a layer keeps at `slots`, the first of which is that of token `first_index`."""
        keys = self._keys[place.group][place.layer][slots].float()
        values = self._values[place.group][place.layer][slots].float()
        if not self._dtype.is_coded:
            return KeysValues(keys, values, first_index)
        key_scales, value_scales = (s[place.layer][slots] for s in self._scales[place.group])
        coded = Coded(values, value_scales)
        return KeysValues(Coded(keys, key_scales).values, coded.values, first_index, coded)


class PassKv:
    """The rows of one pass only; every sequence has context 0."""

    dtype = KvDType.FLOAT32
    rotates_keys = False

    def __init__(self) -> None:
        self._rows: dict[KvPlace, KeysValues] = {}

    def write(
        self, step: StepTensors, place: KvPlace, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """See `KvStore.write`."""
        assert all(rows.context == 0 for rows in step.sequences)
        self._rows[place] = KeysValues(keys, values, 0)

    def read(self, step: StepTensors, place: KvPlace, index: int) -> KeysValues:
        """See `KvStore.read`."""
        rows, all_rows = step.sequences[index], self._rows[place]
        own = slice(rows.first_row, rows.last_row)
        return KeysValues(all_rows.keys[own], all_rows.values[own], 0)


def _scales(shape: tuple[int, ...], dtype: KvDType) -> tuple[torch.Tensor, torch.Tensor]:
    """Of keys and of values, [layers, slots, kv heads, groups]."""
    groups = -(-shape[-1] // KV_SCALE_COLUMNS) if dtype is KvDType.INT4 else 1
    return torch.zeros((*shape[:-1], 1)), torch.zeros((*shape[:-1], groups))
