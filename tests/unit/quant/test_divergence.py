"""Divergences are those of plain numpy in float64, whatever blocks the logits are cut into."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.quant import divergence
from hearth.quant.divergence import DivergenceMeter, PerplexityMeter, work_bytes

Logits = NDArray[np.float32]


def plain_logprobs(logits: Logits) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


def drawn(seed: int, rows: int = 60, vocab: int = 37) -> tuple[Logits, Logits, NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    base = random.normal(0, 2, (rows, vocab)).astype(np.float32)
    other = base + random.normal(0, 0.3, base.shape).astype(np.float32)
    return base, other, random.integers(0, vocab, rows)


@pytest.mark.parametrize("block", [1, 37, 100, 1 << 20])
@pytest.mark.parametrize("step", [1, 7, 60])
def test_all_figures_are_those_of_plain_numpy(
    block: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_BLOCK_ELEMENTS", block)
    base, other, tokens = drawn(1)
    meter = DivergenceMeter()
    for first in range(0, 60, step):
        part = slice(first, first + step)
        meter.add(base[part], other[part], tokens[part])
    found = meter.result()
    p, q, rows = plain_logprobs(base), plain_logprobs(other), np.arange(60)
    own, its = p[rows, tokens], q[rows, tokens]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    ratio = own - its
    assert found.num_tokens == 60
    assert found.reference_perplexity.mean == pytest.approx(math.exp(-own.mean()), rel=1e-12)
    assert found.perplexity.mean == pytest.approx(math.exp(-its.mean()), rel=1e-12)
    error = math.exp(-its.mean()) * its.std(ddof=1) / math.sqrt(60)
    assert found.perplexity.error == pytest.approx(error, rel=1e-12)
    assert found.ln_ratio.mean == pytest.approx(ratio.mean(), rel=1e-9)
    assert found.ln_ratio.error == pytest.approx(ratio.std(ddof=1) / math.sqrt(60), rel=1e-9)
    change = found.perplexity.mean / found.reference_perplexity.mean - 1
    assert found.perplexity_change.mean == pytest.approx(change, rel=1e-9)
    assert found.kl.mean == pytest.approx(kl.mean(), rel=1e-9)
    for name, share in divergence.QUANTILES.items():
        assert found.kl_quantiles[name] == pytest.approx(float(np.quantile(kl, share)), rel=1e-9)
    delta = np.exp(its) - np.exp(own)
    assert found.delta_p.mean == pytest.approx(delta.mean(), abs=1e-12)
    assert found.rms_delta_p == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-9)
    top1 = (base.argmax(axis=1) == other.argmax(axis=1)).mean()
    assert 0 < top1 < 1
    assert found.top1.mean == pytest.approx(top1)
    assert found.top1.error == pytest.approx(math.sqrt(top1 * (1 - top1) / 60))


def test_a_known_perturbation_has_its_known_divergence() -> None:
    # Two tokens with probability 1/2 each against σ(1) and 1 − σ(1).
    base, other = np.zeros((3, 2), np.float32), np.array([[1, 0]] * 3, np.float32)
    meter = DivergenceMeter()
    meter.add(base, other, np.zeros(3, np.int64))
    found = meter.result()
    sure = 1 / (1 + math.exp(-1))
    expected = math.log(0.5) - 0.5 * (math.log(sure) + math.log(1 - sure))
    assert found.kl.mean == pytest.approx(expected, rel=1e-12)
    assert found.kl_quantiles["max"] == pytest.approx(expected, rel=1e-12)
    assert found.delta_p.mean == pytest.approx(sure - 0.5, rel=1e-12)
    assert found.rms_delta_p == pytest.approx(sure - 0.5, rel=1e-12)
    assert found.perplexity.mean == pytest.approx(1 / sure, rel=1e-12)
    assert found.kl.error == pytest.approx(0, abs=1e-15)


def test_equal_logits_differ_by_exactly_nothing() -> None:
    base, _, tokens = drawn(2)
    meter = DivergenceMeter()
    meter.add(base, base.copy(), tokens)
    found = meter.result()
    assert (found.kl.mean, found.kl.error, found.kl_quantiles["max"]) == (0, 0, 0)
    assert (found.ln_ratio.mean, found.rms_delta_p) == (0, 0)
    assert (found.top1.mean, found.top1.error) == (1, 0)


def test_large_logits_neither_overflow_nor_lose_the_difference() -> None:
    base, other, tokens = drawn(3)
    near, far = DivergenceMeter(), DivergenceMeter()
    near.add(base, other, tokens)
    far.add(base + np.float32(1024), other - np.float32(1024), tokens)
    assert far.result().kl.mean == pytest.approx(near.result().kl.mean, rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_that_says_whose(bad: float) -> None:
    base, other, tokens = drawn(4)
    other[5, 3] = bad
    with pytest.raises(KernelError, match="the model gives logits that are not finite"):
        DivergenceMeter().add(base, other, tokens)
    with pytest.raises(KernelError, match="the reference gives"):
        DivergenceMeter().add(other, base, tokens)
    with pytest.raises(KernelError, match="not finite"):
        PerplexityMeter().add(other, tokens)


def test_one_token_has_no_error() -> None:
    base, other, tokens = drawn(5, rows=1)
    meter = DivergenceMeter()
    meter.add(base, other, tokens)
    assert meter.result().kl.error == 0
    alone = PerplexityMeter()
    alone.add(other, tokens)
    assert alone.result() == meter.result().perplexity


def test_memory_does_not_grow_with_the_text() -> None:
    assert work_bytes(128, 151_552) < 300 << 20
    base, other, tokens = drawn(6)
    meter = DivergenceMeter()
    for _ in range(10):
        meter.add(base, other, tokens)
    assert sum(part.nbytes for part in meter._columns) == divergence.TOKEN_BYTES * 600
