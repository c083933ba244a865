"""Builds StepPlans by hand: a paged cache with scattered blocks, and the two loops of the tests.

No scheduler: a `Track` is one sequence (its tokens, how many are computed, its blocks), `Chunk`
says how many of its tokens the next step takes and which of their logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hearth.core.step import Executor, SamplingArrays, StepPlan, StepResult

Mutate = Callable[[StepPlan], StepPlan]


@dataclass
class Track:
    """One sequence. `tokens` may hold negative references for tokens not known yet."""

    tokens: list[int]
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` of a track; `wanted` are offsets within them."""

    track: Track
    num_tokens: int
    wanted: tuple[int, ...] = ()


@dataclass(frozen=True)
class HowToSample:
    """Sampling of every row of a plan."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass
class _Lists:
    """The flat arrays of a plan while they grow, chunk by chunk."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    logit_rows: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    row_start: list[int] = field(default_factory=lambda: [0])
    block_start: list[int] = field(default_factory=lambda: [0])

    def append(self, chunk: Chunk, block_size: int) -> None:
        track, first = chunk.track, chunk.track.num_computed
        last = first + chunk.num_tokens
        self.logit_rows += [len(self.tokens) + offset for offset in chunk.wanted]
        self.tokens += track.tokens[first:last]
        self.positions += range(first, last)
        self.slots += [
            track.blocks[i // block_size] * block_size + i % block_size for i in range(first, last)
        ]
        self.blocks += track.blocks
        self.context.append(first)
        self.row_start.append(len(self.tokens))
        self.block_start.append(len(self.blocks))


class PlanBuilder:
    """Hands out blocks in a shuffled order, so that no test relies on neighbouring blocks."""

    def __init__(
        self, block_size: int, num_blocks: int, seed: int = 0, num_groups: int = 1
    ) -> None:
        """All KV groups use the same block ids, each in its own pool."""
        self.block_size = block_size
        self.num_groups = num_groups
        self.free = [int(b) for b in np.random.default_rng(seed).permutation(num_blocks)]

    def plan(
        self,
        chunks: Sequence[Chunk],
        how: HowToSample | Sequence[HowToSample] = HowToSample(),
        copies: Sequence[tuple[int, int]] = (),
        spare_blocks: int = 0,
    ) -> StepPlan:
        """The step that computes the chunks; marks their tokens as computed.

        `spare_blocks`: so many blocks more than needed are listed for every sequence.
        """
        lists = _Lists()
        for chunk in chunks:
            last = chunk.track.num_computed + chunk.num_tokens
            self._grow(chunk.track, last, spare_blocks)
            lists.append(chunk, self.block_size)
            chunk.track.num_computed = last
        sampled = [lists.positions[row] + 1 for row in lists.logit_rows]
        return StepPlan(
            tokens=_int32(lists.tokens),
            positions=_int32([lists.positions] * 3),
            row_start=_int32(lists.row_start),
            context=_int32(lists.context),
            slots=_int32([lists.slots] * self.num_groups),
            blocks=_int32(lists.blocks),
            block_start=_int32([lists.block_start] * self.num_groups),
            first_block=_int32([[0] * len(chunks)] * self.num_groups),
            logit_rows=_int32(lists.logit_rows),
            sampling=sampling_arrays(how, sampled),
            copies=_int32([[g, a, b] for g in range(self.num_groups) for a, b in copies]).reshape(
                -1, 3
            ),
            encoder=_int32([]).reshape(-1, 3),
            want_logits=True,
        )

    def _grow(self, track: Track, num_tokens: int, spare_blocks: int) -> None:
        needed = -(-num_tokens // self.block_size) + spare_blocks
        while len(track.blocks) < needed:
            track.blocks.append(self.free.pop())


def sampling_arrays(
    how: HowToSample | Sequence[HowToSample], positions: Sequence[int]
) -> SamplingArrays:
    """One entry a row: the same for all, or one each."""
    rows = [how] * len(positions) if isinstance(how, HowToSample) else list(how)
    return SamplingArrays(
        temperature=np.array([h.temperature for h in rows], np.float32),
        top_k=_int32([h.top_k for h in rows]),
        top_p=np.array([h.top_p for h in rows], np.float32),
        min_p=np.array([h.min_p for h in rows], np.float32),
        seed=np.array([h.seed for h in rows], np.uint64),
        position=_int32(list(positions)),
        choice=_int32([0] * len(rows)),
    )


def teacher_forced(
    executor: Executor,
    builder: PlanBuilder,
    sequences: Sequence[Sequence[int]],
    budget: int,
    mutate: Mutate | None = None,
) -> list[NDArray[np.float32]]:
    """Raw logits at every position of every sequence, [length, vocabulary] each.

    Every step takes up to `budget` tokens, from the sequences in order.
    """
    tracks = [Track(list(tokens)) for tokens in sequences]
    collected: list[list[NDArray[np.float32]]] = [[] for _ in tracks]
    while any(track.num_computed < len(track.tokens) for track in tracks):
        chunks = [Chunk(track, n, tuple(range(n))) for track, n in _share(tracks, budget) if n > 0]
        owners = [tracks.index(chunk.track) for chunk in chunks for _ in chunk.wanted]
        result = _execute(executor, builder.plan(chunks, spare_blocks=1), mutate)
        assert result.logits is not None
        for owner, row in zip(owners, result.logits):
            collected[owner].append(row)
    return [np.stack(rows) for rows in collected]


def generate(
    executor: Executor,
    builder: PlanBuilder,
    prompts: Sequence[Sequence[int]],
    num_new: int,
    budget: int,
) -> list[tuple[int, ...]]:
    """Greedy answers, prefill in chunks mixed with decode under one token budget a step."""
    tracks = [Track(list(prompt)) for prompt in prompts]
    goals = [len(prompt) + num_new for prompt in prompts]
    while any(len(track.tokens) < goal for track, goal in zip(tracks, goals)):
        unfinished = [t for t, goal in zip(tracks, goals) if len(t.tokens) < goal]
        chunks = [
            Chunk(track, n, (n - 1,) if track.num_computed + n == len(track.tokens) else ())
            for track, n in _share(unfinished, budget)
            if n > 0
        ]
        result = executor.execute(builder.plan(chunks))
        ready = [chunk.track for chunk in chunks if chunk.wanted]
        for track, token in zip(ready, result.tokens.tolist()):
            track.tokens.append(token)
    return [tuple(t.tokens[len(p) :]) for t, p in zip(tracks, prompts)]


def _share(tracks: Sequence[Track], budget: int) -> list[tuple[Track, int]]:
    """The budget, shortest remainder first, so that decode is never behind a long prompt."""
    shares = []
    for track in sorted(tracks, key=lambda t: len(t.tokens) - t.num_computed):
        take = min(budget, len(track.tokens) - track.num_computed)
        shares.append((track, take))
        budget -= take
    return shares


def _execute(executor: Executor, plan: StepPlan, mutate: Mutate | None) -> StepResult:
    return executor.execute(mutate(plan) if mutate else plan)


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.array(values, np.int32)
