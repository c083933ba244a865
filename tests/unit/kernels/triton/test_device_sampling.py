"""Sampling on the device gives what its plain definition gives, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.edits import RowEdits, logit_edits

from hearth.core.step import LogitEdits, SamplingArrays
from hearth.kernels.reference.sampling import SampledRows, sample_rows, uniform
from hearth.kernels.triton import memory, sampling
from hearth.kernels.triton.plan_buffer import SamplingTensors
from hearth.kernels.triton.sampling import SampledTensors, Wanted, edit_tensors, sample, uniforms

CPU = torch.device("cpu")


def arrays(num_rows: int, seed: int = 0) -> SamplingArrays:
    """Rows with every mixture of temperature and filters, greedy ones among them."""
    rng = np.random.default_rng(seed)
    choose = rng.choice
    return SamplingArrays(
        temperature=choose([0.0, 0.5, 1.0, 2.0], num_rows).astype(np.float32),
        top_k=choose([0, 1, 3, 1000], num_rows).astype(np.int32),
        top_p=choose([0.0, 0.3, 0.9, 1.0], num_rows).astype(np.float32),
        min_p=choose([0.0, 0.05, 1.0], num_rows).astype(np.float32),
        seed=rng.integers(0, 1 << 64, num_rows, dtype=np.uint64),
        position=rng.integers(0, 1 << 31, num_rows).astype(np.int32),
        choice=rng.integers(0, 8, num_rows).astype(np.int32),
    )


def on_device(how: SamplingArrays) -> SamplingTensors:
    count = how.top_k.shape[0]
    none = np.zeros(count, np.int32)
    seeds = how.seed
    return SamplingTensors(
        *(
            torch.from_numpy(np.array(a))
            for a in (
                how.temperature,
                how.top_k,
                how.top_p,
                how.min_p,
                seeds.astype(np.uint32).view(np.int32),
                (seeds >> np.uint64(32)).astype(np.uint32).view(np.int32),
                how.position,
                how.choice,
                none if how.num_logprobs is None else how.num_logprobs,
                none - 1 if how.given is None else how.given,
            )
        )
    )


def sampled(
    logits: NDArray[np.float32], how: SamplingArrays, edits: LogitEdits | None = None
) -> SampledTensors:
    edit = None if edits is None else edit_tensors(edits, CPU)
    return sample(torch.from_numpy(logits), on_device(how), Wanted.of(how), edit)


def check(actual: SampledTensors, expected: SampledRows) -> None:
    """Tokens are equal; log-probabilities but for rounding."""
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs.numpy(), expected.logprobs, rtol=1e-6, atol=1e-6)
    for own, other in (
        (actual.ranks, expected.ranks),
        (actual.top_tokens, expected.top_tokens),
        (actual.top_logprobs, expected.top_logprobs),
    ):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            np.testing.assert_allclose(own.numpy(), other, rtol=1e-6, atol=1e-6)


def test_uniforms_are_those_of_the_definition_bit_by_bit() -> None:
    how = arrays(200)
    u = uniforms(on_device(how))
    expected = [
        uniform(int(s), int(p), int(c)) for s, p, c in zip(how.seed, how.position, how.choice)
    ]
    assert u.tolist() == expected


@pytest.mark.parametrize("vocab_size", [1, 2, 33, 500])
def test_tokens_are_those_of_the_definition(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 3, (300, vocab_size)).astype(np.float32)
    how = arrays(300, seed=vocab_size)
    check(sampled(logits, how), sample_rows(logits, how))


def test_equal_logits_are_ranked_by_id() -> None:
    rng = np.random.default_rng(5)
    logits = rng.integers(0, 3, (300, 40)).astype(np.float32)
    how = arrays(300, seed=5)
    check(sampled(logits, how), sample_rows(logits, how))


def test_rows_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 3, (50, 31)).astype(np.float32)
    how = replace(arrays(50), num_logprobs=np.full(50, 3, np.int32), num_top=3)
    whole = sampled(logits, how)
    monkeypatch.setattr(sampling, "rows_at_once", lambda _: 7)
    check(sampled(logits, how), sample_rows(logits, how))
    assert sampled(logits, how).tokens.tolist() == whole.tokens.tolist()
    assert memory.rows_at_once(1 << 30) == 1


def test_edits_come_before_the_choice_and_not_into_the_log_probability() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (4, 20)).astype(np.float32)
    best = logits.argmax(axis=-1)
    rows = [
        RowEdits(repetition=2.0, counts={int(best[0]): 0, 3: 2}),
        RowEdits(frequency=0.7, presence=1.5, counts={int(best[1]): 3, 4: 0}),
        RowEdits(biases={int(best[2]): -np.inf, 7: 4.0}, counts={7: 1}, presence=9.0),
        RowEdits(),
    ]
    how = replace(
        arrays(4), temperature=np.array([0, 0, 0, 1], np.float32), edits=logit_edits(rows)
    )
    check(sampled(logits, how, how.edits), sample_rows(logits, how))


def test_a_row_that_forbids_everything_gives_the_lowest_id() -> None:
    logits = np.zeros((2, 5), np.float32)
    edits = logit_edits([RowEdits(biases=dict.fromkeys(range(5), -np.inf)), RowEdits()])
    how = replace(arrays(2), temperature=np.ones(2, np.float32), edits=edits)
    check(sampled(logits, how, edits), sample_rows(logits, how))


def test_scored_rows_give_the_rank_and_log_probability_of_their_token() -> None:
    rng = np.random.default_rng(8)
    logits = rng.integers(-3, 3, (12, 9)).astype(np.float32)
    how = replace(
        arrays(12),
        given=np.array([-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, -1, 0], np.int32),
        num_logprobs=np.array([-1, 0, 1, 2, 3, 9, 0, -1, 4, 5, 2, 1], np.int32),
        num_top=9,
    )
    check(sampled(logits, how), sample_rows(logits, how))


def test_more_best_tokens_than_the_vocabulary_has_are_filled_up() -> None:
    logits = np.array([[1.0, 2.0]], np.float32)
    how = replace(arrays(1), num_logprobs=np.array([5], np.int32), num_top=5)
    actual, expected = sampled(logits, how), sample_rows(logits, how)
    assert actual.top_tokens is not None
    assert expected.top_tokens is not None
    assert actual.top_tokens.tolist() == expected.top_tokens.tolist() == [[1, 0, -1, -1, -1]]


def test_an_infinite_logit_is_taken() -> None:
    logits = np.array([[0.0, np.inf, 1.0, np.inf]], np.float32)
    how = replace(
        arrays(1), temperature=np.ones(1, np.float32), num_logprobs=np.array([-1], np.int32)
    )
    assert sampled(logits, how).tokens.tolist() == [1]


def test_frequencies_follow_the_probabilities() -> None:
    """20,000 draws of one row: within 5 standard deviations of what a temperature says."""
    count, logits = 20_000, np.array([0.0, 1.0, 2.0], np.float32)
    how = SamplingArrays(
        temperature=np.full(count, 0.8, np.float32),
        top_k=np.zeros(count, np.int32),
        top_p=np.ones(count, np.float32),
        min_p=np.zeros(count, np.float32),
        seed=np.arange(count, dtype=np.uint64),
        position=np.full(count, 3, np.int32),
        choice=np.zeros(count, np.int32),
        num_logprobs=np.full(count, -1, np.int32),
    )
    tokens = sampled(np.tile(logits, (count, 1)), how).tokens.numpy()
    weights = np.exp(logits / 0.8)
    wanted = weights / weights.sum()
    seen = np.bincount(tokens, minlength=3) / count
    assert (np.abs(seen - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count)).all()
