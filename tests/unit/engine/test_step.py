"""The plan builder against a plain one, token by token."""

from __future__ import annotations

import itertools
from array import array
from typing import Any, TypeAlias

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.core.request import Request, SamplingParams
from hearth.core.step import KvConfig, StepLimits, StepPlan
from hearth.engine.decision import StepDecision
from hearth.engine.kv.blocks import BlockTable
from hearth.engine.sequence import Sequence
from hearth.engine.step import StepBuilder

BLOCK_SIZE = 4


@st.composite
def decisions(draw: st.DrawFn) -> tuple[int, StepDecision]:
    """A decision over sequences whose tables hold arbitrary blocks."""
    groups = draw(st.integers(1, 3))
    decision = StepDecision()
    all_single = draw(st.booleans())
    for number in range(draw(st.integers(1, 5))):
        known = draw(st.integers(1, 24))
        start = known - 1 if all_single else draw(st.integers(0, known - 1))
        count = 1 if all_single else draw(st.integers(1, known - start))
        table = BlockTable(groups)
        table.end_block = -(-(start + count) // BLOCK_SIZE)
        for group in range(groups):
            table.first_block[group] = draw(st.integers(0, start // BLOCK_SIZE))
            num_blocks = table.end_block - table.first_block[group]
            ids = draw(st.lists(st.integers(0, 999), min_size=num_blocks, max_size=num_blocks))
            table.blocks[group] = array("i", ids)
        prompt = tuple(draw(st.lists(st.integers(0, 96), min_size=known, max_size=known)))
        sampling = SamplingParams(0.5 * number, 0.9, number, 0.1, 2**64 - 1 - number)
        sequence = Sequence(Request(f"{number}", prompt, 5, sampling), number, table, 64)
        sequence.num_computed = start
        decision.add(sequence, count)
        decision.num_logits[-1] = draw(st.integers(0, count))
    return groups, decision


Lists: TypeAlias = dict[str, list[Any]]


@settings(max_examples=200)
@given(st.lists(decisions(), min_size=1, max_size=3))
def test_arrays_say_what_the_decision_says(steps: list[tuple[int, StepDecision]]) -> None:
    groups = steps[0][0]
    limits = StepLimits(200, 8, 200, 64)
    builder = StepBuilder(limits, KvConfig(BLOCK_SIZE, (1000,) * groups, "float32"))
    for step_groups, decision in steps:  # one builder: its arrays hold what the step before left
        if step_groups != groups:
            continue
        plan = builder.build(decision)
        assert as_lists(plan) == by_token(decision, groups)
        arrays = (plan.positions, plan.slots, plan.block_start, plan.first_block)
        assert all(one.flags.c_contiguous for one in arrays)
        values = list(range(len(plan.logit_rows)))
        grouped = builder.distribute(decision, values)
        assert [len(group) for group in grouped] == decision.num_logits
        assert [value for group in grouped for value in group] == values


def as_lists(plan: StepPlan) -> Lists:
    sampling = plan.sampling
    block_lists = [
        [plan.blocks[begin:end].tolist() for begin, end in itertools.pairwise(starts)]
        for starts in plan.block_start.tolist()
    ]
    return {
        "tokens": plan.tokens.tolist(),
        "positions": plan.positions.T.tolist(),
        "slots": plan.slots.T.tolist(),
        "row_start": plan.row_start.tolist(),
        "context": plan.context.tolist(),
        "blocks": block_lists,
        "first_block": plan.first_block.tolist(),
        "logit_rows": plan.logit_rows.tolist(),
        "position": sampling.position.tolist(),
        "seed": sampling.seed.tolist(),
        "filters": np.stack(
            [sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p], axis=1
        ).tolist(),
    }


def by_token(decision: StepDecision, groups: int) -> Lists:
    """What the arrays must say, by one token after the other."""
    tables = [sequence.table for sequence in decision.sequences]
    found: Lists = {
        "tokens": [],
        "positions": [],
        "slots": [],
        "row_start": [0],
        "context": list(decision.starts),
        "blocks": [[list(table.blocks[group]) for table in tables] for group in range(groups)],
        "first_block": [[table.first_block[group] for table in tables] for group in range(groups)],
        "logit_rows": [],
        "position": [],
        "seed": [],
        "filters": [],
    }
    for index, sequence in enumerate(decision.sequences):
        start, count = decision.starts[index], decision.num_tokens[index]
        for position in range(start, start + count):
            found["tokens"].append(sequence.tokens[position])
            found["positions"].append([position] * 3)
            found["slots"].append([slot(tables[index], group, position) for group in range(groups)])
        end = found["row_start"][-1] + count
        found["row_start"].append(end)
        sampling = sequence.request.sampling
        for back in range(decision.num_logits[index], 0, -1):
            found["logit_rows"].append(end - back)
            found["position"].append(start + count - back + 1)
            found["seed"].append(sampling.seed)
            found["filters"].append(filters(sampling))
    return found


def filters(sampling: SamplingParams) -> list[float]:
    values = sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
    return [float(np.float32(value)) for value in values]


def slot(table: BlockTable, group: int, position: int) -> int:
    block = table.blocks[group][position // BLOCK_SIZE - table.first_block[group]]
    return block * BLOCK_SIZE + position % BLOCK_SIZE
