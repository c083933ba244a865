"""Two models that do not fit into memory together: the reference first, then the other.

    pass 1   the reference runs all sequences as far as its last norm; states, greedy answers, what
             its single operations did on the first tokens, and its packed head go to a file
    pass 2   MODEL runs; the reference's logits come from the states and the mapped head, by the
             same kernels, step by step

Logits are bit for bit those of both models side by side: a kernel's result depends on its row and
the weights alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import ConfigError
from hearth.core.program import Linear, Norm, StepProgram
from hearth.core.step import StepLimits
from hearth.core.units import format_bytes
from hearth.engine.executor import patterns_of
from hearth.engine.plain_steps import (
    Greedy,
    Layout,
    Logits,
    Rows,
    forced_logits,
    greedy_answers,
    layout_of,
    step_plan,
)
from hearth.kernels.cpu.executor import CpuExecutor, Tiling
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.fuse import access_of
from hearth.kernels.packing import arena_bytes, packed_tensors
from hearth.quant.layers import (
    LayerReport,
    SeenOperation,
    compare_layers,
    layer_report,
    layer_tokens,
    walk_bytes,
    walked,
    why_not,
)
from hearth.quant.sides import PlannedSide, Progress, Side, build_side, head_slots
from hearth.quant.spool import Spool

# Of the disk that is free, what single operations may take: they can be left out.
_LAYER_SHARE = 2


class Reference(Protocol):
    """What a model is compared with, wherever it is."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of its loading."""
        ...

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """Of the next sequence: as `forced_logits`."""
        ...

    @property
    def is_at_end(self) -> bool:
        """Whether it has logits of no other sequence."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[Greedy]:
        """Its greedy answers."""
        ...

    def layers(self, model: Side, tokens: Sequence[int]) -> LayerReport | str:
        """The model's layers against its own, or why that cannot be told."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How long greedy answers become. `ends`: tokens behind which there is nothing."""

    num_tokens: int
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LiveReference:
    """A reference that is in memory beside the model."""

    side: Side
    rules: AnswerRules

    @property
    def warnings(self) -> tuple[str, ...]:
        """See Reference."""
        return self.side.warnings

    @property
    def is_at_end(self) -> bool:
        """See Reference."""
        return False

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """See Reference."""
        return forced_logits(self.side.executor, tokens, self.side.plan.layout)

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[Greedy]:
        """See Reference."""
        return answers_of(self.side, prompts, self.rules)

    def layers(self, model: Side, tokens: Sequence[int]) -> LayerReport | str:
        """See Reference."""
        return layer_report(model, self.side, tokens)


def answers_of(side: Side, prompts: Sequence[Sequence[int]], rules: AnswerRules) -> list[Greedy]:
    """Greedy answers of a model."""
    layout = side.plan.layout
    return greedy_answers(side.executor, prompts, rules.num_tokens, layout, rules.ends)


@dataclass(frozen=True, slots=True)
class Recording:
    """What is to be recorded. `sequences` can be run through again; `num_kept` come up twice."""

    sequences: Callable[[], Iterable[list[int]]]
    most_rows: int  # of all sequences together
    prompts_of: Callable[[Sequence[list[int]]], list[list[int]]]
    num_kept: int
    rules: AnswerRules
    with_layers: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Where its states lie, and which tokens it is of."""

    place: int
    digest: bytes


@dataclass(slots=True)
class RecordedReference:
    """A reference that ran before; its states, answers and head lie in a file."""

    spool: Spool
    layout: Layout
    warnings: tuple[str, ...] = ()
    sequences: list[_Sequence] = field(default_factory=list)
    recorded_answers: list[Greedy] = field(default_factory=list)
    operations: list[_Place] = field(default_factory=list)
    layers_missing: str = ""
    head: _Head | None = None
    _next: int = 0

    @property
    def is_at_end(self) -> bool:
        """See Reference."""
        return self._next == len(self.sequences)

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """See Reference."""
        assert self.head is not None
        recorded, width = self.sequences[self._next], self.head.width
        self._next += 1
        if recorded.digest != _digest_of(tokens):
            raise ConfigError(
                "the text has changed while it was measured on",
                hint="measure again, on a file that nobody writes to",
            )
        for first in range(0, len(tokens), self.layout.step_tokens):
            piece = tokens[first : first + self.layout.step_tokens]
            states = self.spool.read(recorded.place + 4 * width * first, (len(piece), width))
            yield self.head.logits(states)

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[Greedy]:
        """See Reference."""
        return self.recorded_answers[: len(prompts)]

    def layers(self, model: Side, tokens: Sequence[int]) -> LayerReport | str:
        """See Reference."""
        if self.layers_missing:
            return self.layers_missing
        seen = (place.read(self.spool) for place in self.operations)
        return compare_layers(model, seen, layer_tokens(model.plan, tokens))

    def close(self) -> None:
        """Ends the head's executor and gives the file back."""
        if self.head is not None:
            self.head.executor.close()
        self.spool.close()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the arrays of a `SeenOperation` lie."""

    state: tuple[int, tuple[int, ...]] | None
    name: str
    inputs: tuple[tuple[int, tuple[int, ...]], ...]
    out: tuple[int, tuple[int, ...]] | None

    @classmethod
    def of(cls, seen: SeenOperation, spool: Spool) -> _Place:
        """Written."""

        def put(array: NDArray[np.float32]) -> tuple[int, tuple[int, ...]]:
            return spool.append(array), array.shape

        state = None if seen.state is None else put(seen.state)
        out = None if seen.out is None else put(seen.out)
        return cls(state, seen.name, tuple(put(one) for one in seen.inputs), out)

    def read(self, spool: Spool) -> SeenOperation:
        """As it was."""
        state = None if self.state is None else spool.read(*self.state)
        out = None if self.out is None else spool.read(*self.out)
        return SeenOperation(state, self.name, tuple(spool.read(*one) for one in self.inputs), out)


@dataclass(frozen=True, slots=True)
class _Head:
    """The operations behind the last norm, with their weights alone."""

    executor: CpuExecutor
    states: int  # the buffer that they begin with
    width: int
    layout: Layout

    def logits(self, states: NDArray[np.float32]) -> Logits:
        """Of normed hidden states, [n, width]."""
        self.executor.write_buffer(self.states, states)
        groups = len(self.executor.program.kv_groups)
        rows = Rows([0] * len(states), 0, 0, len(states))
        logits = self.executor.execute(step_plan([rows], self.layout, groups)).logits
        assert logits is not None
        return logits


def record(
    plan: PlannedSide, model: PlannedSide, recording: Recording, progress: Progress,
    advance: Callable[[int], None],
) -> RecordedReference:  # fmt: skip
    """Loads a reference, runs it, and lets go of it. `advance`: tokens so far.

    Raises what `build_side` raises, and CapacityError where the disk has no room.
    """
    head_bytes = arena_bytes(head_slots(plan.loaded.program))
    width = _states_of(plan.loaded.program).width
    spool = Spool(head_bytes + 4 * width * recording.most_rows, plan.config.weight_cache)
    recorded = RecordedReference(spool, plan.layout)
    try:
        side = build_side(plan, progress)
        with closing(side.executor):
            recorded.warnings = side.warnings
            _record(side, model, recording, recorded, advance)
        recorded.head = _mapped_head(side, spool)
    except BaseException:
        recorded.close()
        raise
    return recorded


def _record(
    side: Side, model: PlannedSide, recording: Recording, recorded: RecordedReference,
    advance: Callable[[int], None],
) -> None:  # fmt: skip
    executor = side.executor
    assert isinstance(executor, CpuExecutor)
    kept: list[list[int]] = []
    num_rows = 0
    states = _states_of(executor.program)
    isa = executor.info.detail.partition(",")[0]
    tiling = Tiling(patterns_of(side.plan.config), cuts=frozenset({states.end}))
    shape, threads, layout = side.shape, side.plan.num_threads, side.plan.layout
    one_place = (layout.place_blocks,) * len(shape.kv.num_blocks)
    kv = replace(shape.kv, num_blocks=one_place)
    with closing(
        CpuExecutor(executor.program, executor.weights, shape.limits, kv, threads, isa, tiling)
    ) as cut:
        for tokens in recording.sequences():
            if len(kept) < recording.num_kept:
                kept.append(tokens)
            place = recorded.spool.append(_states(cut, tokens, layout, states))
            recorded.sequences.append(_Sequence(place, _digest_of(tokens)))
            num_rows += len(tokens)
            advance(num_rows)
    recorded.recorded_answers = answers_of(side, recording.prompts_of(kept), recording.rules)
    recorded.layers_missing = _record_layers(side, model, recording, recorded, kept[0])


def _digest_of(tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(np.array(tokens, np.int64).tobytes()).digest()


def _record_layers(
    side: Side, model: PlannedSide, recording: Recording, recorded: RecordedReference,
    tokens: Sequence[int],
) -> str:  # fmt: skip
    """Why there are none; empty: there are."""
    if not recording.with_layers:
        return "--no-layers"
    if why := why_not(model, side.plan):
        return why
    tokens = layer_tokens(side.plan, tokens)
    needed = walk_bytes(side.plan, len(tokens))
    if needed > recorded.spool.free_bytes // _LAYER_SHARE:
        return (
            f"the models run one after the other, and single layers would take "
            f"{format_bytes(needed)} in {recorded.spool.directory}, more than half of what is free"
        )
    with walked(side, tokens) as seen:
        recorded.operations = [_Place.of(one, recorded.spool) for one in seen]
    return ""


@dataclass(frozen=True, slots=True)
class _States:
    """The last norm's output: its buffer, and the operation behind it."""

    buffer: int
    width: int
    end: int


def _states_of(program: StepProgram) -> _States:
    at = max(at for at, op in enumerate(program.ops) if isinstance(op, Norm))
    norm = program.ops[at]
    assert isinstance(norm, Norm)
    return _States(norm.out, program.buffers[norm.out].width, at + 1)


def _states(
    cut: CpuExecutor, tokens: Sequence[int], layout: Layout, states: _States
) -> NDArray[np.float32]:
    """Normed hidden states at every position of a sequence, [length, width]."""
    found = []
    groups = len(cut.program.kv_groups)
    for first in range(0, len(tokens), layout.step_tokens):
        piece = tokens[first : first + layout.step_tokens]
        rows = Rows(piece, first, 0, len(piece))
        cut.execute_part(
            replace(step_plan([rows], layout, groups), want_logits=False), 0, states.end
        )
        found.append(cut.read_buffer(states.buffer, len(piece)))
    return np.concatenate(found)


def _mapped_head(side: Side, spool: Spool) -> _Head:
    """Writes the head's packed weights down; an executor that reads them from there."""
    executor = side.executor
    assert isinstance(executor, CpuExecutor)
    whole, states = executor.program, _states_of(executor.program)
    program = _head_program(whole, states)
    num_bytes = arena_bytes(program.slots)
    place = spool.reserve(num_bytes)
    offsets = {tensor.name: tensor.offset for tensor in packed_tensors(program.slots)}
    for slot in program.slots:
        spool.write(place + offsets[slot.name], executor.weights.packed(slot))
    memory = spool.mapped(place, num_bytes)
    plan = side.plan
    step, size = plan.layout.step_tokens, side.shape.kv.block_size
    layout = layout_of(size, step, 1, step)
    kv = replace(side.shape.kv, num_blocks=(layout.num_blocks,) * len(program.kv_groups))
    limits = StepLimits(step, 1, step, step)
    isa = executor.info.detail.partition(",")[0]
    head = CpuExecutor(
        program, CpuWeights(program, memory), limits, kv, plan.num_threads, isa,
        Tiling(patterns_of(plan.config)),
    )  # fmt: skip
    return _Head(head, states.buffer, states.width, layout)


def _head_program(program: StepProgram, states: _States) -> StepProgram:
    """What follows the last norm; buffers keep their numbers, those that nobody uses no room."""
    ops = program.ops[states.end :]
    used = {states.buffer}
    for op in ops:
        access = access_of(op)
        used |= {*access.reads, *access.writes}
    assert any(isinstance(op, Linear) for op in ops)
    buffers = [
        buffer if i in used else replace(buffer, width=1, group_size=0)
        for i, buffer in enumerate(program.buffers)
    ]
    groups = [replace(group, num_layers=1, window=0) for group in program.kv_groups]
    return replace(
        program,
        ops=ops,
        slots=head_slots(program),
        buffers=tuple(buffers),
        kv_groups=tuple(groups),
    )
