"""The plain definition of sampling is itself right: vectors, filters, distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hearth.core.step import SamplingArrays
from hearth.kernels.reference.sampling import (
    RowSampling,
    kept_tokens,
    logprob,
    philox4x32,
    sample_row,
    sample_rows,
    token_weights,
    uniform,
)

PLAIN = RowSampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, position=0, choice=0)
FULL = 0xFFFFFFFF

# Few distinct values, so that equal logits are common.
logits_rows = arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([-3, -1, 0, 0.5, 2]))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([FULL] * 4, [FULL] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    """Known answers of the Random123 distribution (kat_vectors, philox4x32 10)."""
    actual = philox4x32(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert actual.tolist() == words


def test_philox_is_computed_row_by_row() -> None:
    counters = np.arange(12, dtype=np.uint32).reshape(3, 4)
    keys = np.arange(6, dtype=np.uint32).reshape(3, 2)
    rows = [philox4x32(c, k).tolist() for c, k in zip(counters, keys)]
    assert philox4x32(counters, keys).tolist() == rows


def test_a_draw_depends_on_every_part_of_its_key_and_counter() -> None:
    draws = {
        uniform(seed, position, choice, draw)
        for seed in (0, 1, 1 << 32, (1 << 64) - 1)
        for position in (0, 1, 99)
        for choice in (0, 1)
        for draw in (0, 1)
    }
    assert len(draws) == 4 * 3 * 2 * 2
    assert all(0 <= draw < 1 for draw in draws)


def test_temperature_0_takes_the_lowest_id_among_the_largest() -> None:
    logits = np.array([0, 3, 1, 3, 3], np.float32)
    assert sample_row(logits, replace(PLAIN, temperature=0.0)) == 1


@given(logits_rows, st.integers(1, 40))
def test_top_k_keeps_the_first_k_of_the_ranking(logits: NDArray[np.float32], k: int) -> None:
    kept = kept_tokens(logits, replace(PLAIN, top_k=k)).tolist()
    ranking = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert kept == ranking[:k]


@given(logits_rows, st.floats(0.01, 0.999))
def test_top_p_keeps_the_shortest_sufficient_prefix(
    logits: NDArray[np.float32], top_p: float
) -> None:
    kept = kept_tokens(logits, replace(PLAIN, top_p=top_p)).tolist()
    ranking = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert kept == ranking[: len(kept)]
    weights = token_weights(logits, 1.0).astype(np.float64)
    threshold = float(np.float32(top_p)) * weights[ranking].sum()
    assert math.fsum(weights[kept]) >= threshold * (1 - 1e-12)
    assert math.fsum(weights[kept[:-1]]) < threshold * (1 + 1e-12)


@given(logits_rows, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough(logits: NDArray[np.float32], min_p: float) -> None:
    kept = set(kept_tokens(logits, replace(PLAIN, min_p=min_p)).tolist())
    weights = token_weights(logits, 1.0)
    assert kept == {i for i, w in enumerate(weights) if w >= np.float32(min_p)}


@given(
    logits_rows,
    st.builds(
        RowSampling,
        temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
        top_k=st.integers(0, 8),
        top_p=st.floats(0.01, 1.0),
        min_p=st.floats(0.0, 1.0),
        seed=st.integers(0, (1 << 64) - 1),
        position=st.integers(0, 1 << 30),
        choice=st.integers(0, 100),
    ),
)
def test_a_sampled_token_is_one_that_is_kept(logits: NDArray[np.float32], how: RowSampling) -> None:
    kept = kept_tokens(logits, how)
    assert len(kept) >= 1
    assert int(logits.argmax()) == kept[0]
    assert sample_row(logits, how) in kept


def test_top_p_is_taken_of_what_top_k_leaves() -> None:
    """Weights 4, 2, 1, 1: after top_k = 2, the first alone holds 4/6 ≥ 0.6; without, 4/8 < 0.6."""
    logits = np.log(np.array([1, 4, 2, 1], np.float32))
    assert kept_tokens(logits, replace(PLAIN, top_k=2, top_p=0.6)).tolist() == [1]
    assert kept_tokens(logits, replace(PLAIN, top_p=0.6)).tolist() == [1, 2]


@pytest.mark.parametrize(
    "how",
    [
        PLAIN,
        replace(PLAIN, temperature=0.5),
        replace(PLAIN, temperature=2.0, top_k=4),
        replace(PLAIN, top_p=0.8),
        replace(PLAIN, min_p=0.2, seed=1 << 40),
        replace(PLAIN, choice=3),
    ],
)
def test_tokens_come_with_their_probabilities(how: RowSampling) -> None:
    """χ² over 4,000 positions; the limit is the 99.99 % quantile for 7 degrees of freedom."""
    logits = np.array([0.3, -1.0, 1.2, 0.0, 0.9, -2.0, 0.3, 1.1], np.float32)
    weights = np.zeros(8)
    kept = kept_tokens(logits, how)
    weights[kept] = token_weights(logits, how.temperature)[kept]
    num_draws = 4000
    expected = num_draws * weights / weights.sum()
    counts = np.zeros(8)
    for position in range(num_draws):
        counts[sample_row(logits, replace(how, position=position))] += 1
    assert counts[weights == 0].sum() == 0
    present = expected > 0
    chi_square = ((counts - expected)[present] ** 2 / expected[present]).sum()
    assert chi_square < 29.9


def test_logprob_is_that_of_temperature_1() -> None:
    logits = np.array([1.0, 2.0, 500.0, 499.0], np.float32)
    expected = -math.log(1 + math.exp(-1.0))
    assert logprob(logits, 2) == pytest.approx(expected)
    assert logprob(logits, 3) == pytest.approx(expected - 1.0)


def test_rows_are_sampled_by_their_own_settings() -> None:
    logits = np.tile(np.array([0, 1, 0.9], np.float32), (3, 1))
    sampling = SamplingArrays(
        temperature=np.array([0, 1, 1], np.float32),
        top_k=np.array([0, 1, 0], np.int32),
        top_p=np.ones(3, np.float32),
        min_p=np.zeros(3, np.float32),
        seed=np.array([0, 0, 5], np.uint64),
        position=np.array([4, 4, 4], np.int32),
        choice=np.zeros(3, np.int32),
    )
    rows = sample_rows(logits, sampling)
    alone = sample_row(logits[2], replace(PLAIN, seed=5, position=4))
    assert rows.tokens.tolist() == [1, 1, alone]
    assert rows.logprobs.tolist() == [pytest.approx(logprob(logits[0], t)) for t in (1, 1, alone)]
