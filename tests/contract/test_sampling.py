"""Every executor samples as `kernels/reference/sampling` says, given its own raw logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.contract.conftest import Build
from tests.contract.plan_builder import Chunk, HowToSample, PlanBuilder, Track
from tests.support.executors import Setup
from tests.support.hf_models import CASES, Expected, ModelCase, build_model

from hearth.core.step import StepPlan
from hearth.kernels.reference.sampling import sample_rows
from hearth.models.loader import load_model_spec

NUM_ROWS = 500
ExpectedOf = Callable[[ModelCase], Expected]

SETTINGS = {
    "plain": [HowToSample(1.0), HowToSample(0.3), HowToSample(1.8)],
    "top_k": [HowToSample(1.0, top_k=k) for k in (1, 2, 5, 40, 10_000)],
    "top_p": [HowToSample(1.5, top_p=p) for p in (0.05, 0.5, 0.9, 0.99)],
    "min_p": [HowToSample(1.5, min_p=p) for p in (0.01, 0.1, 0.9)],
    "all": [HowToSample(1.2, top_k=20, top_p=0.9, min_p=0.02), HowToSample(0.0, top_k=3)],
}


def varied_plan(settings: list[HowToSample], vocab_size: int) -> StepPlan:
    """One long sequence, every row sampled, with seeds of 64 bits and various choices."""
    random = np.random.default_rng(5)
    track = Track(random.integers(0, vocab_size, NUM_ROWS).tolist())
    hows = [
        replace(settings[r % len(settings)], seed=int(random.integers(0, 1 << 63)) * 2 + 1)
        for r in range(NUM_ROWS)
    ]
    chunk = Chunk(track, NUM_ROWS, tuple(range(NUM_ROWS)))
    plan = PlanBuilder(16, 256).plan([chunk], hows)
    choice = random.integers(0, 1000, NUM_ROWS).astype(np.int32)
    return replace(plan, sampling=replace(plan.sampling, choice=choice))


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_the_plain_definition(
    name: str, expected_of: ExpectedOf, build: Build
) -> None:
    case = CASES[2]
    loaded = load_model_spec(expected_of(case).path)
    plan = varied_plan(SETTINGS[name], loaded.spec.vocab_size)
    result = build(Setup(loaded)).execute(plan)
    assert result.logits is not None
    plain = sample_rows(result.logits, plan.sampling)
    assert np.flatnonzero(result.tokens != plain.tokens).tolist() == []
    assert np.abs(result.logprobs - plain.logprobs).max() <= 1e-5
    assert len(set(result.tokens.tolist())) > 30


def test_equal_logits_are_ranked_by_id(tmp_path: Path, build: Build) -> None:
    """A head of zeros: greedy takes id 0, top_k = 3 leaves ids 0 to 2, no filter leaves all."""
    model = build_model(CASES[0])
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path)
    loaded = load_model_spec(tmp_path)
    settings = [HowToSample(0.0), HowToSample(1.0, top_k=3), HowToSample(1.0)]
    plan = varied_plan(settings, loaded.spec.vocab_size)
    result = build(Setup(loaded)).execute(plan)
    assert result.logits is not None
    assert not result.logits.any()
    assert set(result.tokens[0::3].tolist()) == {0}
    assert set(result.tokens[1::3].tolist()) == {0, 1, 2}
    assert len(set(result.tokens[2::3].tolist())) > 80
    assert result.tokens.tolist() == sample_rows(result.logits, plan.sampling).tokens.tolist()


def given_plan(vocab_size: int, num_top: int) -> StepPlan:
    """Every second row has a token given; each asks for another number of the best."""
    plan = varied_plan(SETTINGS["all"], vocab_size)
    random = np.random.default_rng(6)
    given = random.integers(0, vocab_size, NUM_ROWS).astype(np.int32)
    given[1::2] = -1
    wanted = (np.arange(NUM_ROWS) % (num_top + 2) - 1).astype(np.int32)
    sampling = replace(plan.sampling, given=given, num_logprobs=wanted, num_top=num_top)
    return replace(plan, sampling=sampling)


def test_given_tokens_are_scored_and_leave_other_rows_as_they_are(
    expected_of: ExpectedOf, build: Build
) -> None:
    loaded = load_model_spec(expected_of(CASES[2]).path)
    plan = given_plan(loaded.spec.vocab_size, num_top=7)
    given, wanted = plan.sampling.given, plan.sampling.num_logprobs
    assert given is not None
    assert wanted is not None
    result = build(Setup(loaded)).execute(plan)
    assert result.logits is not None
    plain = sample_rows(result.logits, plan.sampling)
    assert result.tokens.tolist() == plain.tokens.tolist()
    assert result.tokens[0::2].tolist() == given[0::2].tolist()
    sampled = sample_rows(result.logits, replace(plan.sampling, given=None))
    assert result.tokens[1::2].tolist() == sampled.tokens[1::2].tolist()
    np.testing.assert_allclose(result.logprobs, plain.logprobs, atol=1e-5)
    assert np.isnan(result.logprobs).tolist() == (wanted < 0).tolist()
    assert result.ranks is not None
    assert plain.ranks is not None
    assert result.ranks.tolist() == plain.ranks.tolist()
    assert set(result.ranks[1::2].tolist()) == {0}
    assert result.top_tokens is not None
    assert plain.top_tokens is not None
    assert result.top_tokens.tolist() == plain.top_tokens.tolist()


def test_equal_logits_have_the_ranks_of_their_ids(tmp_path: Path, build: Build) -> None:
    model = build_model(CASES[0])
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path)
    loaded = load_model_spec(tmp_path)
    plan = given_plan(loaded.spec.vocab_size, num_top=0)
    result = build(Setup(loaded)).execute(plan)
    given = plan.sampling.given
    assert given is not None
    assert result.ranks is not None
    assert result.ranks.tolist() == np.where(given < 0, 0, given + 1).tolist()
