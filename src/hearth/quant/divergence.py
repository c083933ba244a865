"""How far one model's next-token distributions are from another's, token by token.

Logits come a step at a time and are dropped; what stays is five numbers a token (TOKEN_BYTES), of
which the quantiles are taken. Arithmetic is float64: divergences of 1e-6 nats would drown in
float32 sums over a vocabulary. The figures are those of llama.cpp's `perplexity --kl-divergence`
(github.com/ggml-org/llama.cpp, tools/perplexity), with the same definitions:

  perplexity  exp(mean of −ln p(token)); its error is perplexity · σ/√n
  ln ratio    mean of ln p_ref(token) − ln p(token) = ln(perplexity / that of the reference).
              Paired: both see the same tokens; its error is far smaller than that of either
  KL          Σ p_ref ln(p_ref / p), in nats
  Δp          p(token) − p_ref(token)
  top-1       share of positions at which both have the same best token

Errors take tokens as independent. Neighbouring ones are not quite; a longer text tells more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import KernelError

Floats: TypeAlias = NDArray[np.float64]

TOKEN_BYTES = 5 * 8
# Elements of a block of logits that is in float64 at a time, at least a row: 1 MiB, so that the few
# arrays of a block stay in the cache.
_BLOCK_ELEMENTS = 1 << 17
_COPIES = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tokens and its standard error, in the unit of what was averaged."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of a model against a reference, over `num_tokens` tokens. See the module's docstring.

    `kl_quantiles`: median, 99 %, 99.9 % and the largest. `rms_delta_p` is a probability.
    """

    num_tokens: int
    perplexity: Estimate
    reference_perplexity: Estimate
    ln_ratio: Estimate
    kl: Estimate
    kl_quantiles: dict[str, float]
    delta_p: Estimate
    rms_delta_p: float
    top1: Estimate

    @property
    def perplexity_change(self) -> Estimate:
        """As a share: 0.004 is + 0.4 %; from the paired ln ratio."""
        ratio = float(np.exp(self.ln_ratio.mean))
        return Estimate(ratio - 1, ratio * self.ln_ratio.error)


QUANTILES = {"median": 0.5, "99 %": 0.99, "99.9 %": 0.999, "max": 1.0}


class DivergenceMeter:
    """Takes logits of both models, rows that predict the same tokens, and forgets them."""

    def __init__(self) -> None:
        self._columns: list[Floats] = []  # [5, n] each

    @property
    def num_tokens(self) -> int:
        """So far."""
        return sum(part.shape[1] for part in self._columns)

    def add(
        self,
        reference: NDArray[np.float32],
        model: NDArray[np.float32],
        tokens: NDArray[np.int64],
    ) -> None:
        """Raw logits, [n, vocabulary] of both; `tokens` [n] are those that follow.

        Raises KernelError where a logit is NaN or infinite.
        """
        for rows in row_blocks(*reference.shape):
            p, q = _Softmax(reference[rows], "the reference"), _Softmax(model[rows], "the model")
            self._columns.append(_columns(p, q, tokens[rows]))

    def result(self) -> Divergence:
        """Over all that was added; at least one token."""
        reference, model, kl, delta, same = np.concatenate(self._columns, axis=1)
        top1 = float(same.mean())
        return Divergence(
            num_tokens=len(kl),
            perplexity=_perplexity(model),
            reference_perplexity=_perplexity(reference),
            ln_ratio=_estimate(model - reference),
            kl=_estimate(kl),
            kl_quantiles={name: float(np.quantile(kl, q)) for name, q in QUANTILES.items()},
            delta_p=_estimate(delta),
            rms_delta_p=float(np.sqrt((delta**2).mean())),
            top1=Estimate(top1, float(np.sqrt(top1 * (1 - top1) / len(kl)))),
        )

    def curve(self, num_points: int = 200) -> list[tuple[float, float]]:
        """KL divergence by rank: (share of tokens below it, nats), for a plot."""
        kl = np.sort(np.concatenate([part[2] for part in self._columns]))
        shares = np.linspace(0, 1, num_points)
        return [(float(s), float(v)) for s, v in zip(shares, np.quantile(kl, shares))]


class PerplexityMeter:
    """Of one model alone; see `DivergenceMeter`."""

    def __init__(self) -> None:
        self._losses: list[Floats] = []

    @property
    def num_tokens(self) -> int:
        """So far."""
        return sum(map(len, self._losses))

    def add(self, logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> None:
        """As `DivergenceMeter.add`."""
        for rows in row_blocks(*logits.shape):
            self._losses.append(-_Softmax(logits[rows], "the model").logprobs(tokens[rows]))

    def result(self) -> Estimate:
        """Over all that was added; at least one token."""
        return _perplexity(np.concatenate(self._losses))


def work_bytes(step_tokens: int, vocab_size: int) -> int:
    """Memory that a step's logits of both models take, those in float64 included."""
    block = max(_BLOCK_ELEMENTS, vocab_size)
    return 2 * step_tokens * vocab_size * 4 + 2 * _COPIES * block * 8


def row_blocks(num_rows: int, width: int) -> Iterator[slice]:
    """Rows in blocks that float64 may have at a time."""
    count = max(1, _BLOCK_ELEMENTS // width)
    for first in range(0, num_rows, count):
        yield slice(first, first + count)


class _Softmax:
    """Of some rows, in float64: ln p = `shifted` − `log_sum`, p = `powers` / `sums`.

    Raises KernelError where a logit is NaN or infinite.
    """

    def __init__(self, logits: NDArray[np.float32], whose: str) -> None:
        self.best = logits.argmax(axis=-1)  # where there is NaN, its place
        largest = np.take_along_axis(logits, self.best[:, None], axis=-1)
        if not (np.isfinite(largest).all() and np.isfinite(logits.min())):
            raise _not_finite(whose)
        self.shifted = np.subtract(logits, largest, dtype=np.float64)
        self.powers = np.exp(self.shifted)
        self.sums = self.powers.sum(axis=-1)
        self.log_sum = np.log(self.sums)

    def logprobs(self, tokens: NDArray[np.int64]) -> Floats:
        """The natural logarithm of one token's probability, for each row."""
        found: Floats = self.shifted[np.arange(len(tokens)), tokens] - self.log_sum
        return found


def _columns(p: _Softmax, q: _Softmax, tokens: NDArray[np.int64]) -> Floats:
    """−ln p and −ln q of the tokens, KL, Δp, and whether the best token is the same; [5, n].

    Σ p (ln p − ln q) = Σ powers · (shifted − shifted_q) / sums − (log_sum − log_sum_q): two
    exponentials an element instead of three, and nothing at all where both are equal.
    """
    own, other = p.logprobs(tokens), q.logprobs(tokens)
    p.shifted -= q.shifted
    kl = np.einsum("nv,nv->n", p.powers, p.shifted) / p.sums - (p.log_sum - q.log_sum)
    same = p.best == q.best
    # Rounding leaves some 1e-16 of a divergence that cannot be negative.
    return np.stack([-own, -other, np.maximum(kl, 0), np.exp(other) - np.exp(own), same])


def _not_finite(whose: str) -> KernelError:
    return KernelError(
        f"{whose} gives logits that are not finite: there is nothing to compare",
        hint="its weights hold NaN or infinite values, or its kernels are wrong here: try "
        "--isa generic, or fetch the model again",
    )


def _estimate(values: Floats) -> Estimate:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), deviation / float(np.sqrt(len(values))))


def _perplexity(losses: Floats) -> Estimate:
    mean = _estimate(losses)
    value = float(np.exp(mean.mean))
    return Estimate(value, value * mean.error)
