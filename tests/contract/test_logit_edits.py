"""Penalties, biases and log-probabilities of every executor, against the plain definition.

The logits are arbitrary: row i of an embedding table is the logits row of token i.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.contract.plan_builder import Chunk, HowToSample, PlanBuilder, Track
from tests.support.edits import RowEdits, logit_edits
from tests.unit.kernels.programs import Bench, build, host_tensor, sample_program

from hearth.core.errors import KernelError
from hearth.core.step import Executor, KvConfig, StepLimits, StepPlan
from hearth.kernels.reference.executor import ReferenceExecutor
from hearth.kernels.reference.sampling import edited_row, sample_rows
from hearth.kernels.reference.weights import ReferenceWeights

ROWS = 8
VOCABULARIES = (1, 5, 64, 199)
FORBIDDEN = -math.inf


def table_of(vocab: int, seed: int, scale: float = 2.0) -> NDArray[np.float32]:
    """[vocab, vocab]; the first rows are used."""
    random = np.random.default_rng(seed)
    return random.normal(0, scale, (vocab, vocab)).astype(np.float32)


def executor_of(name: str, table: NDArray[np.float32]) -> Executor:
    program = sample_program(len(table))
    if name == "cpu":
        return build(program, {"table": table}, Bench(threads=2))
    weights = ReferenceWeights(program)
    weights.put(program.slots[0], 0, host_tensor(table))
    return ReferenceExecutor(
        program, weights, StepLimits(64, 16, 64, 64), KvConfig(16, (), "float32")
    )


def plan_of(hows: list[HowToSample], edits: list[RowEdits], vocab: int, best: int = -1) -> StepPlan:
    """Row i is sampled from the logits of token i; `best` goes up by one a row."""
    rows = len(hows)
    chunk = Chunk(Track([r % vocab for r in range(rows)], blocks=[0] * 4), rows, tuple(range(rows)))
    plan = PlanBuilder(16, 0).plan([chunk], hows)
    wanted = np.array([best + r if best >= 0 else -1 for r in range(rows)], np.int32)
    sampling = replace(
        plan.sampling,
        num_logprobs=wanted,
        num_top=max(0, int(wanted.max())),
        edits=logit_edits(edits) if edits else None,
    )
    empty = np.zeros((0, rows), np.int32)
    return replace(
        plan,
        sampling=sampling,
        slots=empty,
        block_start=np.zeros((0, 2), np.int32),
        first_block=np.zeros((0, 1), np.int32),
        blocks=np.zeros(0, np.int32),
    )


@st.composite
def row_edits(draw: st.DrawFn, vocab: int) -> RowEdits:
    tokens = st.integers(0, vocab - 1)
    bias = st.sampled_from([-100.0, -2.5, 0.5, 3.0, 100.0, FORBIDDEN])
    return RowEdits(
        repetition=draw(st.sampled_from([1.0, 0.5, 1.1, 1.7])),
        frequency=draw(st.sampled_from([0.0, -2.0, 0.3, 2.0])),
        presence=draw(st.sampled_from([0.0, -1.5, 0.7, 2.0])),
        counts=draw(st.dictionaries(tokens, st.integers(0, 5), max_size=12)),
        biases=draw(st.dictionaries(tokens, bias, max_size=12)),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[HowToSample], list[RowEdits], int]:
    vocab = draw(st.sampled_from(VOCABULARIES))
    how = st.builds(
        HowToSample,
        temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
        top_k=st.sampled_from([0, 0, 1, 3, 100]),
        top_p=st.sampled_from([1.0, 1.0, 0.35, 0.9]),
        min_p=st.sampled_from([0.0, 0.0, 0.08]),
        seed=st.integers(0, (1 << 64) - 1),
    )
    hows = draw(st.lists(how, min_size=ROWS, max_size=ROWS))
    edits = draw(st.lists(row_edits(vocab), min_size=ROWS, max_size=ROWS))
    return vocab, hows, edits, draw(st.sampled_from([-1, 0, 14]))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), seed=st.integers(0, 1 << 30))
def test_edited_rows_are_sampled_as_the_plain_definition_says(
    name: str, case: tuple[int, list[HowToSample], list[RowEdits], int], seed: int
) -> None:
    vocab, hows, edits, best = case
    table = table_of(vocab, seed)
    plan = plan_of(hows, edits, vocab, best)
    executor = executor_of(name, table)
    result = executor.execute(plan)
    executor.close()
    logits = table[plan.tokens]
    assert result.logits is not None
    assert np.array_equal(result.logits, logits), "raw logits stay as they are"
    plain = sample_rows(logits, plan.sampling)
    assert result.tokens.tolist() == plain.tokens.tolist()
    assert np.allclose(result.logprobs, plain.logprobs, atol=1e-5, equal_nan=True)
    if best < 0:
        assert np.isnan(result.logprobs).all()
        assert result.top_tokens is None
        return
    if plain.top_tokens is not None and plain.top_logprobs is not None:
        assert result.top_tokens is not None
        assert result.top_logprobs is not None
        assert result.top_tokens.tolist() == plain.top_tokens.tolist()
        assert np.allclose(result.top_logprobs, plain.top_logprobs, atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_penalties_change_a_greedy_answer(name: str) -> None:
    """Two logits apart by 1; each penalty alone turns them round, and only for its own tokens."""
    table = np.full((8, 8), -5, np.float32)
    table[:, 3], table[:, 6] = 2.0, 1.0
    edits = [
        RowEdits(),
        RowEdits(repetition=2.5, counts={3: 0}),
        RowEdits(frequency=0.6, counts={3: 2}),
        RowEdits(presence=1.1, counts={3: 9}),
        RowEdits(frequency=2.0, presence=2.0, counts={3: 0}),  # in the prompt only
        RowEdits(biases={3: FORBIDDEN}),
        RowEdits(biases={0: 100.0}),
        RowEdits(biases=dict.fromkeys(range(8), FORBIDDEN)),  # nothing is left: the lowest id
    ]
    executor = executor_of(name, table)
    tokens = executor.execute(plan_of([HowToSample()] * 8, edits, 8)).tokens.tolist()
    executor.close()
    assert tokens == [3, 6, 6, 6, 3, 6, 0, 0]


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_forbidden_token_is_never_drawn(name: str) -> None:
    """Also not at the draw of 0, which takes the first token that has weight."""
    vocab = 2000
    table = table_of(vocab, 3)
    forbidden = dict.fromkeys(range(1100), FORBIDDEN)
    hows = [HowToSample(1.0, seed=s, top_p=1.0 - 0.4 * (s % 2)) for s in range(48)]
    executor = executor_of(name, table)
    plan = plan_of(hows, [RowEdits(biases=forbidden)] * 48, vocab)
    assert executor.execute(plan).tokens.min() >= 1100
    executor.close()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
def test_flat_rows_over_a_large_vocabulary_keep_the_same_tokens(top_p: float) -> None:
    """Thousands of candidates: the counting sort, and ties among them."""
    vocab = 6000
    table = np.zeros((vocab, vocab), np.float32)
    random = np.random.default_rng(9)
    table[:24] = random.normal(0, 0.5, (24, vocab))
    table[12:24] = np.round(table[12:24] * 8) / 8
    executor = executor_of("cpu", table)
    plan = plan_of([HowToSample(1.0, 0, top_p, 0.0, s) for s in range(24)], [], vocab)
    result = executor.execute(plan)
    executor.close()
    expected = sample_rows(table[:24], plan.sampling)
    assert (result.tokens != expected.tokens).sum() <= 1  # float32 sums of exponentials


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_penalized_draws_come_with_their_probabilities(name: str) -> None:
    """χ² over 6,000 positions; the limit is the 99.99 % quantile for 7 degrees of freedom."""
    table = np.tile(np.array([0.3, -1, 1.2, 0, 0.9, -2, 0.3, 1.1], np.float32), (8, 1))
    edits = logit_edits([RowEdits(1.4, 0.3, 0.2, {2: 2, 1: 1, 7: 0}, {5: 2.5, 0: FORBIDDEN})])
    edited = edited_row(table[0], edits, 0).astype(np.float64)
    weights = np.exp(edited / 1.3)
    executor = executor_of(name, table)
    plan = plan_of([HowToSample(1.3, seed=77)] * 60, [RowEdits()] * 60, 8)
    row = RowEdits(1.4, 0.3, 0.2, {2: 2, 1: 1, 7: 0}, {5: 2.5, 0: FORBIDDEN})
    sampling = replace(plan.sampling, edits=logit_edits([row] * 60))
    counts = np.zeros(8)
    for step in range(100):
        sampling.position[:] = np.arange(60) + 60 * step
        result = executor.execute(replace(plan, sampling=sampling))
        counts += np.bincount(result.tokens, minlength=8)
    executor.close()
    expected = counts.sum() * weights / weights.sum()
    assert counts[0] == 0
    present = expected > 0
    assert ((counts - expected)[present] ** 2 / expected[present]).sum() < 29.9


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (RowEdits(counts={5: 1}), "count_tokens"),
        (RowEdits(biases={-1: 1.0}), "bias_tokens"),
        (RowEdits(counts=dict.fromkeys(range(6), 1)), "count_tokens"),
    ],
)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_edits_outside_the_vocabulary_are_refused(name: str, edits: RowEdits, message: str) -> None:
    executor = executor_of(name, table_of(5, 1))
    with pytest.raises(KernelError, match=message):
        executor.execute(plan_of([HowToSample()], [edits], 5))
    executor.close()
