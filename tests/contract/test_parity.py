"""Every executor gives the tokens and logits of transformers, however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest
from tests.contract.comparison import LOGITS_TOLERANCE, compare_logits
from tests.contract.conftest import Build
from tests.contract.plan_builder import (
    Chunk,
    HowToSample,
    PlanBuilder,
    Track,
    generate,
    teacher_forced,
)
from tests.support.executors import Setup
from tests.support.hf_models import NUM_NEW_TOKENS, Expected

from hearth.models.loader import LoadedSpec

# A greedy token can only differ when the gap between the two best logits is less than twice the
# error of a logit: with these, a differing token is a defect.
GAP_OVER_TOLERANCE = 5
GAP_OVER_ERROR = 10


def make_builder(setup: Setup) -> PlanBuilder:
    num_groups = len(setup.loaded.program.kv_groups)
    return PlanBuilder(setup.block_size, setup.num_blocks, num_groups=num_groups)


def test_the_models_are_fit_for_the_comparison(expected: Expected) -> None:
    assert expected.num_distinct() >= 30
    assert expected.smallest_gap() >= GAP_OVER_TOLERANCE * LOGITS_TOLERANCE


@pytest.mark.parametrize("budget", [7, 64, 512])
def test_logits_of_a_batch_equal_transformers(
    expected: Expected, loaded: LoadedSpec, build: Build, budget: int
) -> None:
    setup = Setup(loaded, max_tokens=budget)
    sequences = [expected.sequence(i) for i in range(len(expected.prompts))]
    actual = teacher_forced(build(setup), make_builder(setup), sequences, budget)
    difference = compare_logits(expected.logits, actual)
    print(f"largest difference {difference.largest:.2e}, gap {expected.smallest_gap():.2e}")
    assert difference.is_close, difference
    assert expected.smallest_gap() >= GAP_OVER_ERROR * difference.largest


@pytest.mark.parametrize("budget", [7, 64, 512])
def test_greedy_tokens_of_a_batch_equal_transformers(
    expected: Expected, loaded: LoadedSpec, build: Build, budget: int
) -> None:
    setup = Setup(loaded, max_tokens=budget)
    answers = generate(build(setup), make_builder(setup), expected.prompts, NUM_NEW_TOKENS, budget)
    assert answers == list(expected.greedy)


@pytest.mark.parametrize("budget", [7, 64, 512])
def test_greedy_tokens_of_one_sequence_equal_transformers(
    expected: Expected, loaded: LoadedSpec, build: Build, budget: int
) -> None:
    setup = Setup(loaded, max_tokens=budget, block_size=32)
    answers = generate(
        build(setup), make_builder(setup), expected.prompts[:1], NUM_NEW_TOKENS, budget
    )
    assert answers == [expected.greedy[0]]


def test_tokens_may_refer_to_rows_of_the_step_before(
    expected: Expected, loaded: LoadedSpec, build: Build
) -> None:
    """Two sequences decode without their tokens ever being told; their rows swap places."""
    setup = Setup(loaded)
    executor, builder = build(setup), make_builder(setup)
    tracks = [Track(list(prompt)) for prompt in expected.prompts[:2]]
    answers: list[list[int]] = [[], []]
    order = [0, 1]
    for step in range(12):
        chunks = [Chunk(tracks[i], n := _remaining(tracks[i]), (n - 1,)) for i in order]
        result = executor.execute(builder.plan(chunks))
        for row, index in enumerate(order):
            answers[index].append(int(result.tokens[row]))
            tracks[index].tokens.append(-(1 + row))
        if step % 2:
            order.reverse()
    assert [tuple(answer) for answer in answers] == [g[:12] for g in expected.greedy[:2]]


def test_a_copied_block_serves_a_second_sequence(
    expected: Expected, loaded: LoadedSpec, build: Build
) -> None:
    """A fork: the second sequence gets copies of the first one's blocks and goes on from there."""
    setup = Setup(loaded)
    executor, builder = build(setup), make_builder(setup)
    prompt, answer = expected.prompts[0], expected.greedy[0]
    first = Track(list(prompt + answer))
    executor.execute(builder.plan([Chunk(first, len(prompt))]))
    second = Track(list(prompt + answer), len(prompt), [builder.free.pop() for _ in first.blocks])
    copies = list(zip(first.blocks, second.blocks))
    # The first sequence takes another way, which the copy must not see.
    first.tokens[len(prompt) :] = [0] * len(answer)
    wanted = tuple(range(len(answer)))
    plan = builder.plan([Chunk(first, 8), Chunk(second, len(answer), wanted)], copies=copies)
    result = executor.execute(plan)
    assert result.logits is not None
    difference = compare_logits([expected.logits[0][len(prompt) :]], [result.logits])
    assert difference.is_close, difference


def test_logprobs_are_those_of_the_raw_logits(
    expected: Expected, loaded: LoadedSpec, build: Build
) -> None:
    setup = Setup(loaded)
    prompt = Track(list(expected.prompts[0]))
    how = HowToSample(temperature=0.7, top_k=5, seed=3)
    plan = make_builder(setup).plan([Chunk(prompt, 23, (3, 9, 22))], how)
    result = build(setup).execute(plan)
    rows = expected.logits[0][[3, 9, 22]].astype(np.float64)
    all_logprobs = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    chosen = all_logprobs[np.arange(3), result.tokens]
    assert np.abs(result.logprobs - chosen).max() <= 2 * LOGITS_TOLERANCE


def test_a_step_without_wanted_rows_gives_none(
    expected: Expected, loaded: LoadedSpec, build: Build
) -> None:
    setup = Setup(loaded)
    plan = make_builder(setup).plan([Chunk(Track(list(expected.prompts[0])), 5)])
    result = build(setup).execute(plan)
    assert result.tokens.shape == (0,)
    assert result.logprobs.shape == (0,)


def _remaining(track: Track) -> int:
    return len(track.tokens) - track.num_computed
