"""Steps without requests: sequences of given lengths, for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hearth.core.step import SamplingArrays, StepPlan
from hearth.core.units import ceil_div

NUM_TOKENS = 64  # distinct ones; every vocabulary has as many


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one sequence in a step, behind `context` tokens that its KV holds already."""

    context: int
    rows: int


def plan_of(
    segments: Sequence[Segment],
    num_groups: int,
    block_size: int,
    first_block: int = 0,
    *,
    with_logits: bool = False,
) -> StepPlan:
    """A step; each sequence owns the blocks behind those of the one before.

    `with_logits`: one token is sampled, greedily, behind the last row of each sequence.
    """
    positions: list[int] = []
    slots: list[int] = []
    blocks: list[int] = []
    row_start, block_start = [0], [0]
    for segment in segments:
        here = range(segment.context, segment.context + segment.rows)
        base = first_block + len(blocks)
        positions += here
        slots += [base * block_size + position for position in here]
        blocks += range(base, base + ceil_div(here.stop, block_size))
        row_start.append(len(positions))
        block_start.append(len(blocks))
    rows = np.array(row_start[1:] if with_logits else [], np.int32) - 1
    return StepPlan(
        tokens=np.arange(len(positions), dtype=np.int32) % NUM_TOKENS,
        positions=np.array([positions] * 3, np.int32),
        row_start=np.array(row_start, np.int32),
        context=np.array([s.context for s in segments], np.int32),
        slots=np.array([slots] * num_groups, np.int32).reshape(num_groups, len(slots)),
        blocks=np.array(blocks * num_groups, np.int32),
        block_start=np.array(
            [[group * len(blocks) + start for start in block_start] for group in range(num_groups)],
            np.int32,
        ).reshape(num_groups, len(block_start)),
        first_block=np.zeros((num_groups, len(segments)), np.int32),
        logit_rows=rows,
        sampling=_greedy(len(rows)),
        copies=np.zeros((0, 3), np.int32),
        encoder=np.zeros((0, 3), np.int32),
    )


def _greedy(num_rows: int) -> SamplingArrays:
    integers, real = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32)
    ones, seeds = np.ones(num_rows, np.float32), np.zeros(num_rows, np.uint64)
    return SamplingArrays(real, integers, ones, real, seeds, integers, integers)
