"""A StepPlan as one flat buffer: filled on the host, copied in at once, read through views.

Offsets are those of `plan_layout`. Rows that a graph has more than the plan belong to no sequence
(slot −1, token 0, sequence −1), and its further sequences have no row.

Owns the pinned buffer and its twin on the device. Filling it while a copy out of it runs would
tear a plan: whoever fills it has waited for the step before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.step import SamplingArrays, StepPlan
from hearth.kernels.triton.plan_layout import PlanLayout, PlanSizes

_FLOATS = frozenset({"temperature", "top_p", "min_p"})


@dataclass(frozen=True, slots=True)
class StepTables:
    """Of one KV group, int32 on the device; S sequences, T rows, those of a graph's padding too.

    `row_start` [S+1] (equal: no row), `context` [S], `blocks` flat, `block_start` [S+1] into
    it, `first_block` [S], `sequence_of_row` [T] (−1: none).
    """

    row_start: torch.Tensor
    context: torch.Tensor
    blocks: torch.Tensor
    block_start: torch.Tensor
    first_block: torch.Tensor
    sequence_of_row: torch.Tensor


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """`SamplingArrays` on the device, [R] each; seeds as two words of 32 bits."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed_low: torch.Tensor
    seed_high: torch.Tensor
    position: torch.Tensor
    choice: torch.Tensor
    num_logprobs: torch.Tensor
    given: torch.Tensor

    def first(self, count: int) -> SamplingTensors:
        """Those of the first rows."""
        return SamplingTensors(*(getattr(self, name)[:count] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A plan on the device. T rows and R wanted ones, padding included."""

    tokens: torch.Tensor  # [T]; negative: a row of the step before
    positions: torch.Tensor  # [3, T], contiguous
    slots: tuple[torch.Tensor, ...]  # [T] a group; −1: no row
    tables: tuple[StepTables, ...]  # a group
    logit_rows: torch.Tensor  # [R]
    sampling: SamplingTensors
    wants_all: bool  # row r's logits are those of token r, of every one
    is_decode: bool  # every sequence has one row
    feature_rows: torch.Tensor | None = None  # [E]
    features: torch.Tensor | None = None  # [E, hidden] float32

    @property
    def num_rows(self) -> int:
        """T."""
        return self.tokens.shape[0]

    @property
    def num_wanted(self) -> int:
        """R."""
        return self.logit_rows.shape[0]


class PlanBuffer:
    """Pinned on the host where the device is a GPU, and its twin there."""

    def __init__(self, sizes: PlanSizes, small_rows: int, device: torch.device) -> None:
        """`small_rows`: steps up to so many rows are laid out for so many, with less to copy."""
        self._sizes = sizes
        small = PlanSizes(small_rows, small_rows, small_rows, sizes.groups, sizes.blocks)
        self._small_rows = small_rows
        self._layouts = (PlanLayout(small), PlanLayout(sizes))
        num_elements = max(layout.num_elements for layout in self._layouts)
        is_cuda = device.type == "cuda"
        self._host = torch.zeros(num_elements, dtype=torch.int32, pin_memory=is_cuda)
        self._array: NDArray[np.int32] = self._host.numpy()
        self._device = torch.zeros(num_elements, dtype=torch.int32, device=device)

    def load(
        self,
        plan: StepPlan,
        padded: int | None = None,
        feature_rows: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> StepTensors:
        """Copies a plan to the device, in order with what runs there; keeps no reference.

        `padded`: so many rows, sequences and wanted rows, of a plan where each sequence has one
        row, which is wanted. Raises KernelError where the plan lists more blocks than fit.
        """
        rows = padded or plan.tokens.shape[0]
        sequences = padded or plan.context.shape[0]
        wanted = padded or plan.logit_rows.shape[0]
        is_small = max(rows, sequences, wanted) <= self._small_rows
        layout = self._layouts[0 if is_small else 1]
        if plan.blocks.shape[0] > self._sizes.blocks:
            raise KernelError(
                f"the plan lists {plan.blocks.shape[0]:,} blocks; permitted: up to "
                f"{self._sizes.blocks:,}"
            )
        self._fill(layout, plan, rows, sequences, wanted)
        end = layout.first_block + plan.blocks.shape[0]
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        step = self._views(layout, plan, rows, sequences, wanted)
        return replace(step, feature_rows=feature_rows, features=features)

    def _fill(
        self, layout: PlanLayout, plan: StepPlan, rows: int, sequences: int, wanted: int
    ) -> None:
        own_rows, own_sequences = plan.tokens.shape[0], plan.context.shape[0]
        at = layout.offsets
        groups = self._sizes.groups
        array = self._array

        def field(name: str, height: int, width: int) -> NDArray[np.int32]:
            first = at[name]
            return array[first : first + height * width].reshape(height, width)

        for name, values, width, padding in (
            ("tokens", plan.tokens[None], rows, 0),
            ("positions", plan.positions, rows, 0),
            ("slots", plan.slots[:groups], rows, -1),
            ("sequence_of_row", _sequence_of_row(plan)[None], rows, -1),
            ("context", plan.context[None], sequences, 0),
            ("first_block", plan.first_block[:groups], sequences, 0),
            ("logit_rows", plan.logit_rows[None], wanted, 0),
        ):
            target = field(name, values.shape[0], width)
            target[:, : values.shape[1]] = values
            target[:, values.shape[1] :] = padding
        starts = field("row_start", 1, sequences + 1)
        starts[0, : own_sequences + 1] = plan.row_start
        starts[0, own_sequences + 1 :] = own_rows
        blocks = field("block_start", groups, sequences + 1)
        blocks[:, : own_sequences + 1] = plan.block_start[:groups]
        blocks[:, own_sequences + 1 :] = plan.block_start[:groups, -1:]
        self._fill_sampling(layout, plan.sampling, wanted)
        array[layout.first_block :][: plan.blocks.shape[0]] = plan.blocks

    def _fill_sampling(self, layout: PlanLayout, sampling: SamplingArrays, wanted: int) -> None:
        count = sampling.top_k.shape[0]
        none = np.zeros(count, np.int32)
        for name, values in (
            ("temperature", sampling.temperature.view(np.int32)),
            ("top_k", sampling.top_k),
            ("top_p", sampling.top_p.view(np.int32)),
            ("min_p", sampling.min_p.view(np.int32)),
            ("seed_low", sampling.seed.astype(np.uint32).view(np.int32)),
            ("seed_high", (sampling.seed >> np.uint64(32)).astype(np.uint32).view(np.int32)),
            ("position", sampling.position),
            ("choice", sampling.choice),
            ("num_logprobs", none if sampling.num_logprobs is None else sampling.num_logprobs),
            ("given", none - 1 if sampling.given is None else sampling.given),
        ):
            first = layout.offsets[name]
            self._array[first : first + count] = values
            self._array[first + count : first + wanted] = 0

    def _views(
        self, layout: PlanLayout, plan: StepPlan, rows: int, sequences: int, wanted: int
    ) -> StepTensors:
        def view(name: str, count: int, index: int = 0) -> torch.Tensor:
            first = layout.offsets[name] + index * count
            return self._device[first : first + count]

        blocks = self._device[layout.first_block :]
        tables = tuple(
            StepTables(
                row_start=view("row_start", sequences + 1),
                context=view("context", sequences),
                blocks=blocks,
                block_start=view("block_start", sequences + 1, group),
                first_block=view("first_block", sequences, group),
                sequence_of_row=view("sequence_of_row", rows),
            )
            for group in range(self._sizes.groups)
        )
        return StepTensors(
            tokens=view("tokens", rows),
            positions=view("positions", 3 * rows).view(3, rows),
            slots=tuple(view("slots", rows, group) for group in range(self._sizes.groups)),
            tables=tables,
            logit_rows=view("logit_rows", wanted),
            sampling=SamplingTensors(
                **{
                    name: _as_stored(view(name, wanted), name)
                    for name in SamplingTensors.__dataclass_fields__
                }
            ),
            wants_all=wants_every_row(plan),
            is_decode=has_single_rows(plan),
        )


def has_single_rows(plan: StepPlan) -> bool:
    """Whether every sequence has one row."""
    return bool((np.diff(plan.row_start) == 1).all())


def wants_every_row(plan: StepPlan) -> bool:
    """Whether wanted row r is row r, of all of them."""
    num_rows = plan.tokens.shape[0]
    return plan.logit_rows.shape[0] == num_rows and bool(
        (plan.logit_rows == np.arange(num_rows)).all()
    )


def _sequence_of_row(plan: StepPlan) -> NDArray[np.int32]:
    """[T]; the sequence that owns each row."""
    counts = np.diff(plan.row_start)
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _as_stored(view: torch.Tensor, name: str) -> torch.Tensor:
    return view.view(torch.float32) if name in _FLOATS else view
