"""Steps without a scheduler: whole texts and greedy answers, for measuring and checking.

Each sequence has a place of its own: the same blocks of every KV group, in order. Nothing is shared
and nothing is evicted, so that what an executor gives depends on its kernels alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hearth.core.step import Executor, SamplingArrays, StepPlan
from hearth.core.units import ceil_div

Logits: TypeAlias = NDArray[np.float32]
Greedy: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the places lie in the KV cache, and what a step may hold.

    `place_blocks`: blocks of a sequence, so that `block_size · place_blocks` tokens find room.
    """

    block_size: int
    place_blocks: int
    num_places: int
    step_tokens: int

    @property
    def num_blocks(self) -> int:
        """Of every KV group."""
        return self.place_blocks * self.num_places


def layout_of(block_size: int, longest: int, num_places: int, step_tokens: int) -> Layout:
    """For sequences of up to `longest` tokens."""
    return Layout(block_size, ceil_div(longest, block_size), num_places, step_tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """The next tokens of the sequence at `place`, after `context` that are computed.

    `num_wanted`: so many of the last rows give logits.
    """

    tokens: Sequence[int]
    context: int
    place: int
    num_wanted: int


def step_plan(rows: Sequence[Rows], layout: Layout, num_groups: int) -> StepPlan:
    """One greedy step with logits."""
    counts = [len(one.tokens) for one in rows]
    starts = np.cumsum([0, *counts])
    size = layout.place_blocks
    listed = np.concatenate([np.arange(size) + one.place * size for one in rows])
    positions = np.concatenate([np.arange(len(one.tokens)) + one.context for one in rows])
    slots = positions + np.repeat([one.place * size * layout.block_size for one in rows], counts)
    wanted = [np.arange(end - one.num_wanted, end) for one, end in zip(rows, starts[1:])]
    logit_rows = np.concatenate(wanted)
    block_start = np.arange(len(rows) + 1) * size
    return StepPlan(
        tokens=np.array([token for one in rows for token in one.tokens], np.int32),
        positions=_int32(np.stack([positions] * 3)),
        row_start=_int32(starts),
        context=np.array([one.context for one in rows], np.int32),
        slots=_int32(np.stack([slots] * num_groups)),
        blocks=_int32(np.concatenate([listed] * num_groups)),
        block_start=_int32(np.stack([block_start + g * len(listed) for g in range(num_groups)])),
        first_block=np.zeros((num_groups, len(rows)), np.int32),
        logit_rows=_int32(logit_rows),
        sampling=_greedy(len(logit_rows)),
        copies=np.zeros((0, 3), np.int32),
        encoder=np.zeros((0, 3), np.int32),
        want_logits=True,
    )


def forced_logits(
    executor: Executor, tokens: Sequence[int], layout: Layout, place: int = 0
) -> Iterator[Logits]:
    """Raw logits at every position of one sequence, a step after the other, [rows, vocabulary].

    Teacher forcing: whatever the executor would have answered, the text goes on as it is.
    """
    num_groups = len(executor.program.kv_groups)
    for first in range(0, len(tokens), layout.step_tokens):
        piece = tokens[first : first + layout.step_tokens]
        plan = step_plan([Rows(piece, first, place, len(piece))], layout, num_groups)
        yield _logits(executor, plan)


def last_logits(
    executor: Executor, prompts: Sequence[Sequence[int]], layout: Layout
) -> list[Logits]:
    """Raw logits behind each prompt, [vocabulary]; one prompt after the other, at place 0."""
    num_groups, found = len(executor.program.kv_groups), []
    for prompt in prompts:
        for first in range(0, len(prompt), layout.step_tokens):
            piece = prompt[first : first + layout.step_tokens]
            logits = _logits(executor, step_plan([Rows(piece, first, 0, 1)], layout, num_groups))
        found.append(logits[-1])
    return found


def greedy_answers(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    layout: Layout,
    ends: Sequence[int] = (),
) -> list[Greedy]:
    """Greedy answers of `num_tokens` tokens, or up to the first of `ends`, which is part of it.

    As many prompts as there are places go side by side, prefills one by one.
    """
    found: list[Greedy] = []
    for first in range(0, len(prompts), layout.num_places):
        batch = prompts[first : first + layout.num_places]
        found += _answer_batch(executor, batch, num_tokens, layout, ends)
    return found


def _answer_batch(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    layout: Layout,
    ends: Sequence[int],
) -> list[Greedy]:
    num_groups = len(executor.program.kv_groups)
    answers = [[_first_token(executor, p, layout, i)] for i, p in enumerate(prompts)]

    def is_open(answer: list[int]) -> bool:
        return len(answer) < num_tokens and answer[-1] not in ends

    while going := [i for i, answer in enumerate(answers) if is_open(answer)]:
        for begin in range(0, len(going), layout.step_tokens):
            part = going[begin : begin + layout.step_tokens]
            rows = [
                Rows([answers[i][-1]], len(prompts[i]) + len(answers[i]) - 1, i, 1) for i in part
            ]
            plan = replace(step_plan(rows, layout, num_groups), want_logits=False)
            for i, token in zip(part, executor.execute(plan).tokens.tolist(), strict=True):
                answers[i].append(token)
    return [tuple(answer) for answer in answers]


def _first_token(executor: Executor, prompt: Sequence[int], layout: Layout, place: int) -> int:
    """Of a prompt, in pieces; what stays behind is its KV."""
    num_groups = len(executor.program.kv_groups)
    token = -1
    for first in range(0, len(prompt), layout.step_tokens):
        piece = prompt[first : first + layout.step_tokens]
        plan = step_plan([Rows(piece, first, place, 1)], layout, num_groups)
        token = int(executor.execute(replace(plan, want_logits=False)).tokens[-1])
    return token


def _logits(executor: Executor, plan: StepPlan) -> Logits:
    logits = executor.execute(plan).logits
    assert logits is not None
    return logits


def _greedy(count: int) -> SamplingArrays:
    return SamplingArrays(
        temperature=np.zeros(count, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seed=np.zeros(count, np.uint64),
        position=np.zeros(count, np.int32),
        choice=np.zeros(count, np.int32),
    )


def _int32(values: NDArray[np.generic]) -> NDArray[np.int32]:
    return np.ascontiguousarray(values, np.int32)
