"""The plan builder against a plain one, token by token."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.core.request import Request, SamplingParams
from hearth.core.step import KvConfig, StepLimits
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


@settings(max_examples=200)
@given(st.lists(decisions(), min_size=1, max_size=3))
def test_arrays_say_what_the_decision_says(steps: list[tuple[int, StepDecision]]) -> None:
    groups = steps[0][0]
    limits = StepLimits(200, 8, 200, 64)
    builder = StepBuilder(limits, KvConfig(BLOCK_SIZE, (1000,) * groups, "float32"))
    for step_groups, decision in steps:
        if step_groups == groups:
            _compare(builder, decision, groups)


def _compare(builder: StepBuilder, decision: StepDecision, groups: int) -> None:
    plan = builder.build(decision)
    row = 0
    logit_row = 0
    for index, sequence in enumerate(decision.sequences):
        assert plan.row_start[index] == row
        assert plan.context[index] == decision.starts[index]
        table = sequence.table
        for group in range(groups):
            begin, end = plan.block_start[group, index : index + 2]
            assert plan.blocks[begin:end].tolist() == list(table.blocks[group])
            assert plan.first_block[group, index] == table.first_block[group]
        count = decision.num_tokens[index]
        for position in range(decision.starts[index], decision.starts[index] + count):
            assert plan.tokens[row] == sequence.tokens[position]
            assert plan.positions[:, row].tolist() == [position] * 3
            for group in range(groups):
                block = table.blocks[group][position // BLOCK_SIZE - table.first_block[group]]
                expected = block * BLOCK_SIZE + position % BLOCK_SIZE
                assert plan.slots[group, row] == expected
            row += 1
        sampling = sequence.request.sampling
        for back in range(decision.num_logits[index], 0, -1):
            assert plan.logit_rows[logit_row] == row - back
            assert plan.sampling.position[logit_row] == decision.starts[index] + count - back + 1
            assert plan.sampling.seed[logit_row] == np.uint64(sampling.seed)
            assert plan.sampling.temperature[logit_row] == np.float32(sampling.temperature)
            assert plan.sampling.top_k[logit_row] == sampling.top_k
            logit_row += 1
    assert plan.row_start[len(decision.sequences)] == row == len(plan.tokens)
    assert len(plan.logit_rows) == len(plan.sampling.min_p) == logit_row
    for array_ in (plan.positions, plan.slots, plan.block_start, plan.first_block):
        assert array_.flags.c_contiguous
    values = list(range(logit_row))
    grouped = builder.distribute(decision, values)
    assert [len(group) for group in grouped] == decision.num_logits
    assert [value for group in grouped for value in group] == values
