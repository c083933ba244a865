"""Step plans for benchmarks that drive an executor without an engine: whole texts, greedy answers.

Each sequence has blocks of its own, in order; as many share a step as the step's tokens allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hearth.core.step import Executor, SamplingArrays, StepPlan

STEP_TOKENS = 512
STEP_SEQUENCES = 16
BLOCK_TOKENS = 32
BLOCKS_A_SEQUENCE = 32

Logits: TypeAlias = NDArray[np.float32]
Greedy: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """The next tokens of one sequence, after `context` that are computed; which logits count."""

    tokens: Sequence[int]
    context: int
    place: int  # which blocks are the sequence's
    num_wanted: int  # of the last rows


def plan(rows: Sequence[Rows], num_groups: int) -> StepPlan:
    """One greedy step with logits."""
    starts = np.cumsum([0, *(len(one.tokens) for one in rows)])
    blocks = np.concatenate(
        [np.arange(BLOCKS_A_SEQUENCE) + one.place * BLOCKS_A_SEQUENCE for one in rows]
    )
    positions = np.concatenate([np.arange(len(one.tokens)) + one.context for one in rows])
    first_slots = [one.place * BLOCKS_A_SEQUENCE * BLOCK_TOKENS for one in rows]
    slots = positions + np.repeat(first_slots, [len(one.tokens) for one in rows])
    wanted = [np.arange(end - one.num_wanted, end) for one, end in zip(rows, starts[1:])]
    logit_rows = np.concatenate(wanted)
    count = len(logit_rows)
    block_start = np.arange(len(rows) + 1) * BLOCKS_A_SEQUENCE
    return StepPlan(
        tokens=_int32([token for one in rows for token in one.tokens]),
        positions=_int32(np.stack([positions] * 3)),
        row_start=_int32(starts),
        context=_int32([one.context for one in rows]),
        slots=_int32(np.stack([slots] * num_groups)),
        blocks=_int32(blocks),
        block_start=_int32(np.stack([block_start] * num_groups)),
        first_block=np.zeros((num_groups, len(rows)), np.int32),
        logit_rows=_int32(logit_rows),
        sampling=SamplingArrays(
            temperature=np.zeros(count, np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            min_p=np.zeros(count, np.float32),
            seed=np.zeros(count, np.uint64),
            position=np.zeros(count, np.int32),
            choice=np.zeros(count, np.int32),
        ),
        copies=np.zeros((0, 3), np.int32),
        encoder=np.zeros((0, 3), np.int32),
        want_logits=True,
    )


def logits_of(executor: Executor, sequences: Sequence[Sequence[int]]) -> list[Logits]:
    """Raw logits at every position, [length, vocabulary] each; up to STEP_TOKENS tokens each."""
    num_groups, found = len(executor.program.kv_groups), []
    for batch in _batches(sequences):
        rows = [Rows(tokens, 0, i, len(tokens)) for i, tokens in enumerate(batch)]
        logits = executor.execute(plan(rows, num_groups)).logits
        assert logits is not None
        found += np.split(logits, np.cumsum([len(tokens) for tokens in batch])[:-1])
    return found


def answers_of(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    ends: tuple[int, ...] = (),
) -> list[Greedy]:
    """Greedy answers of `num_tokens` tokens, or up to the first of `ends`, which is part of it."""
    num_groups, found = len(executor.program.kv_groups), []
    for batch in _batches(prompts):
        rows = [Rows(tokens, 0, i, 1) for i, tokens in enumerate(batch)]
        answers: list[list[int]] = [[] for _ in batch]
        for _ in range(num_tokens):
            tokens = executor.execute(plan(rows, num_groups)).tokens.tolist()
            for answer, token in zip(answers, tokens, strict=True):
                if not (answer and answer[-1] in ends):
                    answer.append(token)
            if all(answer[-1] in ends for answer in answers):
                break
            rows = [
                Rows([token], one.context + len(one.tokens), one.place, 1)
                for one, token in zip(rows, tokens, strict=True)
            ]
        found += [tuple(answer) for answer in answers]
    return found


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for one in sequences:
        is_full = sum(map(len, batch)) + len(one) > STEP_TOKENS or len(batch) == STEP_SEQUENCES
        if batch and is_full:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _int32(values: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
    return np.array(values, np.int32)
