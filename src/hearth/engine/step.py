"""StepBuilder: turns the scheduler's integers into the flat arrays of a StepPlan, and back.

Owns all arrays of a plan, sized once from the limits; a plan is views of them, valid until the next
`build`. Nothing is computed token by token in Python except where every sequence has one token
(decoding), when that is the fastest way.

Row layout: sequence after sequence in the decision's order; the rows of one continue its context.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hearth.core.step import KvConfig, LogitEdits, SamplingArrays, StepLimits, StepPlan
from hearth.core.units import ceil_div
from hearth.engine.decision import StepDecision
from hearth.engine.edits import EditArrays, SequenceEdits
from hearth.engine.encoder_rows import EncoderRows, EncoderRowsWriter
from hearth.engine.sequence import Sequence

Value = TypeVar("Value")


class _Sampling:
    """Sampling arrays for `num_rows` logits rows.

    All but `position` and `given` change only with the rows' owners.
    """

    def __init__(self, max_rows: int) -> None:
        self.temperature = np.zeros(max_rows, np.float32)
        self.top_k = np.zeros(max_rows, np.int32)
        self.top_p = np.ones(max_rows, np.float32)
        self.min_p = np.zeros(max_rows, np.float32)
        self.seed = np.zeros(max_rows, np.uint64)
        self.position = np.zeros(max_rows, np.int32)
        self.choice = np.zeros(max_rows, np.int32)
        self.num_logprobs = np.full(max_rows, -1, np.int32)
        self.given = np.full(max_rows, -1, np.int32)
        self.has_given = False
        self.num_top = 0
        self.wants_logprobs = False
        self._owners: list[Sequence] = []
        self._row_edits: list[SequenceEdits | None] = []
        self._edits: EditArrays | None = None  # None: no row has any

    def fill(self, owners: list[Sequence], *, has_given: bool) -> None:
        """Row r belongs to `owners[r]`; `position` and `given` have been filled before."""
        if owners == self._owners and not has_given and not self.has_given:
            return
        num_rows = len(owners)
        self._owners, self.has_given = owners, has_given
        params = [owner.request.sampling for owner in owners]
        self.temperature[:num_rows] = [p.temperature for p in params]
        self.top_k[:num_rows] = [p.top_k for p in params]
        self.top_p[:num_rows] = [p.top_p for p in params]
        self.min_p[:num_rows] = [p.min_p for p in params]
        self.seed[:num_rows] = [p.seed for p in params]
        self.choice[:num_rows] = [owner.request.choice for owner in owners]
        self.num_logprobs[:num_rows] = [p.num_logprobs for p in params]
        self._row_edits = [owner.edits for owner in owners]
        if has_given:  # of these no token is chosen: nothing changes their logits
            is_given = self.given[:num_rows] >= 0
            self.num_logprobs[:num_rows][is_given] = [
                p.num_prompt_logprobs for p, given in zip(params, is_given.tolist()) if given
            ]
            for row in np.flatnonzero(is_given).tolist():
                self._row_edits[row] = None
        most = int(self.num_logprobs[:num_rows].max(initial=-1))
        self.wants_logprobs, self.num_top = most >= 0, max(0, most)
        self._edits = None
        if any(edits is not None for edits in self._row_edits):
            requests = [owner.request for owner in owners]
            self._edits = EditArrays(list(zip(requests, self._row_edits, strict=True)))

    def edits(self, decision: StepDecision) -> LogitEdits | None:
        """What changes the logits of the rows of the last `fill`, for this step.

        A row after drafted tokens counts them as well: it is only used if they were right.
        """
        if self._edits is None:
            return None
        drafts = dict(zip(decision.sequences, decision.drafts, strict=True))
        ahead: list[Rows[int]] = []
        for row, owner in enumerate(self._owners):
            num_ahead = int(self.position[row]) - owner.num_known
            assert self._row_edits[row] is None or 0 <= num_ahead <= len(drafts[owner]), (
                "edits count known and drafted tokens"
            )
            ahead.append(drafts[owner][: max(0, num_ahead)])
        return self._edits.build([owner.tokens for owner in self._owners], ahead)

    def view(self, num_rows: int) -> SamplingArrays:
        """The first `num_rows` entries of each."""
        return SamplingArrays(
            self.temperature[:num_rows],
            self.top_k[:num_rows],
            self.top_p[:num_rows],
            self.min_p[:num_rows],
            self.seed[:num_rows],
            self.position[:num_rows],
            self.choice[:num_rows],
            self.num_logprobs[:num_rows],
            self.num_top,
            self.given[:num_rows] if self.has_given else None,
        )


class StepBuilder:
    """Builds one StepPlan at a time."""

    def __init__(self, limits: StepLimits, kv: KvConfig, *, want_hashes: bool = False) -> None:
        self._block_size = kv.block_size
        self._num_groups = len(kv.num_blocks)
        self._want_hashes = want_hashes
        tokens, sequences, groups = limits.max_tokens, limits.max_sequences, self._num_groups
        max_blocks = sequences * groups * ceil_div(limits.max_model_len, kv.block_size)
        self._tokens = np.zeros(tokens, np.int32)
        # [3, T] and [G, T] must be contiguous for every T: rows are cut from flat arrays.
        self._positions = np.zeros(3 * tokens, np.int32)
        self._slots = np.zeros(groups * tokens, np.int32)
        self._row_start = np.zeros(sequences + 1, np.int32)
        self._context = np.zeros(sequences, np.int32)
        self._blocks = np.zeros(max_blocks, np.int32)
        self._block_start = np.zeros(groups * (sequences + 1), np.int32)
        self._first_block = np.zeros(groups * sequences, np.int32)
        self._logit_rows = np.zeros(limits.max_logit_rows, np.int32)
        self._sampling = _Sampling(limits.max_logit_rows)
        self._empty = np.zeros((0, 3), np.int32)
        self._ramp = np.arange(max(tokens, sequences) + 1, dtype=np.int32)
        self._shape: tuple[int, ...] = ()
        self._plan: StepPlan | None = None

    def build(self, decision: StepDecision) -> StepPlan:
        """The plan of a decision; it and its arrays are valid until the next call."""
        sequences = decision.sequences
        num_sequences = len(sequences)
        num_tokens = sum(decision.num_tokens)
        self._context[:num_sequences] = decision.starts
        num_blocks = self._fill_blocks(sequences)
        if num_tokens == num_sequences:
            self._fill_single_rows(decision)
        else:
            self._fill_rows(decision, num_tokens)
        num_logits = self._fill_logits(decision, num_tokens)
        copies = np.array(decision.copies, np.int32).reshape(-1, 3) if decision.copies else None
        num_top, has_given = self._sampling.num_top, self._sampling.has_given
        shape = (num_tokens, num_sequences, num_blocks, num_logits, num_top, has_given)
        edits, images = self._sampling.edits(decision), self._fill_images(decision, num_tokens)
        if edits is not None or images is not None:
            return self._special(shape, self._empty if copies is None else copies, edits, images)
        if copies is None and shape == self._shape and self._plan is not None:
            return self._plan  # the same views: decoding goes on
        plan = self._view(shape, self._empty if copies is None else copies)
        self._plan, self._shape = (plan, shape) if copies is None else (None, ())
        return plan

    @property
    def wants_logprobs(self) -> bool:
        """Whether any row of the last plan asks for log-probabilities."""
        return self._sampling.wants_logprobs

    def distribute(self, decision: StepDecision, values: list[Value]) -> list[list[Value]]:
        """Values of the logits rows that are sampled, grouped by the decision's sequences."""
        if decision.num_logits.count(1) == len(decision.sequences) and not any(decision.num_given):
            return [[value] for value in values]
        grouped: list[list[Value]] = []
        row = 0
        for num_logits, num_given in zip(decision.num_logits, decision.num_given, strict=True):
            grouped.append(values[row + num_given : row + num_logits])
            row += num_logits
        return grouped

    def _fill_blocks(self, sequences: list[Sequence]) -> int:
        """Block tables, group by group within the flat array; returns its length."""
        flat = array("i")
        starts: list[int] = []
        firsts: list[int] = []
        for group in range(self._num_groups):
            for sequence in sequences:
                starts.append(len(flat))
                table = sequence.table
                firsts.append(table.first_block[group])
                flat.extend(table.blocks[group])
            starts.append(len(flat))
        self._blocks[: len(flat)] = flat
        self._block_start[: len(starts)] = starts
        self._first_block[: len(firsts)] = firsts
        return len(flat)

    def _fill_single_rows(self, decision: StepDecision) -> None:
        """Every sequence has one row."""
        sequences, starts = decision.sequences, decision.starts
        num_rows = len(sequences)
        block_size = self._block_size
        self._row_start[: num_rows + 1] = self._ramp[: num_rows + 1]
        self._tokens[:num_rows] = [
            sequence.tokens[start] for sequence, start in zip(sequences, starts, strict=True)
        ]
        self._positions[: 3 * num_rows].reshape(3, num_rows)[:] = self._context[:num_rows]
        self._slots[: self._num_groups * num_rows] = [
            sequence.table.blocks[group][start // block_size - sequence.table.first_block[group]]
            * block_size
            + start % block_size
            for group in range(self._num_groups)
            for sequence, start in zip(sequences, starts, strict=True)
        ]

    def _fill_rows(self, decision: StepDecision, num_tokens: int) -> None:
        """Chunks of any length: tokens by memory copy, positions and slots by whole arrays."""
        num_sequences = len(decision.sequences)
        flat = array("i")
        for sequence, start, count, draft in zip(
            decision.sequences, decision.starts, decision.num_tokens, decision.drafts, strict=True
        ):
            flat.extend(sequence.tokens[start : start + count - len(draft)])
            flat.extend(draft)
        self._tokens[:num_tokens] = flat
        counts = np.array(decision.num_tokens, np.int32)
        row_start = self._row_start[: num_sequences + 1]
        np.cumsum(counts, out=row_start[1:])
        context = self._context[:num_sequences]
        owner = np.repeat(self._ramp[:num_sequences], counts)
        positions = self._ramp[:num_tokens] + (context - row_start[:-1])[owner]
        self._positions[: 3 * num_tokens].reshape(3, num_tokens)[:] = positions
        self._fill_slots(owner, positions, num_sequences)

    def _fill_slots(
        self, owner: NDArray[np.int32], positions: NDArray[np.int32], num_sequences: int
    ) -> None:
        """Slots: block of the position · block_size + offset, for every row of every group."""
        num_tokens, groups = len(positions), self._num_groups
        block, offset = np.divmod(positions, np.int32(self._block_size))
        starts = self._block_start[: groups * (num_sequences + 1)].reshape(groups, -1)
        firsts = self._first_block[: groups * num_sequences].reshape(groups, -1)
        slots = self._slots[: groups * num_tokens].reshape(groups, num_tokens)
        for group in range(groups):
            base = starts[group, :-1] - firsts[group]
            slots[group] = self._blocks[base[owner] + block] * self._block_size + offset

    def _fill_logits(self, decision: StepDecision, num_tokens: int) -> int:
        """Logits rows and how each is sampled; returns their number."""
        sequences, has_given = decision.sequences, any(decision.num_given)
        num_sequences = len(sequences)
        if num_tokens == num_sequences == decision.num_logits.count(1) and not has_given:
            self._logit_rows[:num_sequences] = self._ramp[:num_sequences]
            np.add(self._context[:num_sequences], 1, out=self._sampling.position[:num_sequences])
            self._sampling.fill(sequences, has_given=False)
            return num_sequences
        rows, positions, given = array("i"), array("i"), array("i")
        owners: list[Sequence] = []
        end_row = 0
        for index, count in enumerate(decision.num_logits):
            end_row += decision.num_tokens[index]
            if count == 0:
                continue
            first = decision.starts[index] + decision.num_tokens[index] - count + 1
            num_given = decision.num_given[index]
            rows.extend(range(end_row - count, end_row))
            positions.extend(range(first, first + count))
            owners += [sequences[index]] * count
            if has_given:
                given.extend(sequences[index].tokens[first : first + num_given])
                given.extend([-1] * (count - num_given))
        self._logit_rows[: len(rows)] = rows
        self._sampling.position[: len(rows)] = positions
        self._sampling.given[: len(given)] = given
        self._sampling.fill(owners, has_given=has_given)
        return len(rows)

    def _special(
        self,
        shape: tuple[int, ...],
        copies: NDArray[np.int32],
        edits: LogitEdits | None,
        images: EncoderRows | None,
    ) -> StepPlan:
        """A plan of its own: its ragged arrays are new in every step."""
        self._plan, self._shape = None, ()
        plan = self._view(shape, copies)
        if edits is not None:
            plan = replace(plan, sampling=replace(plan.sampling, edits=edits))
        if images is not None:
            plan = replace(plan, encoder=images.rows, features=images.features)
        return plan

    def _fill_images(self, decision: StepDecision, num_tokens: int) -> EncoderRows | None:
        """Positions of sequences with images; the rows that show one, or None."""
        if not any(sequence.images for sequence in decision.sequences):
            return None
        positions = self._positions[: 3 * num_tokens].reshape(3, num_tokens)
        rows = EncoderRowsWriter()
        first_row = 0
        for sequence, start, count in zip(
            decision.sequences, decision.starts, decision.num_tokens, strict=True
        ):
            images = sequence.images
            if images is not None and count == 1 and start >= images.positions.shape[1]:
                positions[:, first_row] = start + images.delta
            elif sequence.images is not None:
                own = slice(first_row, first_row + count)
                positions[:, own] = sequence.images.positions_from(start, count)
                rows.add(sequence.images, start, count, first_row)
            first_row += count
        return rows.written()

    def _view(self, shape: tuple[int, ...], copies: NDArray[np.int32]) -> StepPlan:
        """The filled parts of the arrays."""
        num_tokens, num_sequences, num_blocks, num_logits = shape[:4]
        groups = self._num_groups
        starts = self._block_start[: groups * (num_sequences + 1)]
        return StepPlan(
            tokens=self._tokens[:num_tokens],
            positions=self._positions[: 3 * num_tokens].reshape(3, num_tokens),
            row_start=self._row_start[: num_sequences + 1],
            context=self._context[:num_sequences],
            slots=self._slots[: groups * num_tokens].reshape(groups, num_tokens),
            blocks=self._blocks[:num_blocks],
            block_start=starts.reshape(groups, num_sequences + 1),
            first_block=self._first_block[: groups * num_sequences].reshape(groups, num_sequences),
            logit_rows=self._logit_rows[:num_logits],
            sampling=self._sampling.view(num_logits),
            copies=copies,
            encoder=self._empty,
            want_hashes=self._want_hashes,
        )
