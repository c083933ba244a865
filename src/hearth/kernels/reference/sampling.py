"""Sampling as every executor defines it, plainly: the truth that kernels are compared with.

For one row of raw logits:

0. edits: biases are added (−∞ forbids a token); then every counted token is penalized: its logit
   is divided by the repetition penalty where it is positive and multiplied where it is not
   (Keskar et al., CTRL, 2019, as in transformers), and where it was generated, frequency penalty ·
   times generated, then the presence penalty, are subtracted (OpenAI's definition). All float32;
   the order is vLLM's. Where no logit is finite, the lowest id among the largest is taken;
1. temperature 0: the largest logit, the lowest id among equals. Otherwise
   weight_i = exp((logit_i − max) / temperature), float32, and 0 where the exponent is below −87;
2. ranking: by logit descending, id ascending;
3. top_k: the first k of the ranking (0: all);
4. top_p: of those, the shortest prefix whose weights sum to ≥ top_p · (sum of those), at least one
   (1: all);
5. min_p: of those, the tokens with weight ≥ min_p · largest weight (0: all);
6. u = (first Philox word >> 8 + ½) · 2⁻²⁴, target = u · (sum of the kept weights); the kept are
   walked in ranking order when a filter is on, in id order otherwise, and the first whose running
   sum exceeds the target is taken (the last one if rounding leaves none).

The draw is Philox4x32-10 (Salmon et al., SC 2011) with key = (seed low, seed high 32 bits) and
counter = (position, choice, draw, 0): a pure function, so that a resumed stream goes on where it
stopped. logprob = logit − logsumexp(logits): of the raw logits, before edits, temperature and
filters, and so are the best tokens that a row asks for (vLLM's `raw_logprobs`, and what OpenAI's
interface gives). Sums are float64 here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hearth.core.step import LogitEdits, SamplingArrays

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_NUM_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class SampledRows:
    """One token a logits row and its log-probability, [R]; the best tokens, [R, num_top]."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_tokens: NDArray[np.int32] | None = None  # [R, num_top]
    top_logprobs: NDArray[np.float32] | None = None
    ranks: NDArray[np.int32] | None = None  # [R]; of given tokens


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row is sampled; the fields of `SamplingArrays`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int
    choice: int

    @property
    def has_filter(self) -> bool:
        """Whether top_k, top_p or min_p is on."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10: `counter` [..., 4] and `key` [..., 2] to four random words, [..., 4]."""
    words = [counter[..., i].astype(np.uint64) for i in range(4)]
    keys = [key[..., i].astype(np.uint32) for i in range(2)]
    for _ in range(_NUM_ROUNDS):
        first = _MULTIPLIERS[0] * words[0]
        second = _MULTIPLIERS[1] * words[2]
        words = [
            (second >> _SHIFT) ^ words[1] ^ keys[0],
            second & _LOW,
            (first >> _SHIFT) ^ words[3] ^ keys[1],
            first & _LOW,
        ]
        keys = [_wrapping_add(k, step) for k, step in zip(keys, _WEYL)]
    return np.stack(words, axis=-1).astype(np.uint32)


def uniform(seed: int, position: int, choice: int, draw: int = 0) -> float:
    """The draw of one choice at one position: (k + ½) · 2⁻²⁴ in (0, 1), so never 0."""
    counter = np.array([position, choice, draw, 0], np.int64).astype(np.uint32)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    return (int(philox4x32(counter, key)[0] >> np.uint32(8)) + 0.5) * 2.0**-24


def sample_rows(logits: NDArray[np.float32], sampling: SamplingArrays) -> SampledRows:
    """Samples every row of `logits` [R, vocabulary]."""
    num_rows = logits.shape[0]
    tokens = np.zeros(num_rows, np.int32)
    logprobs = np.zeros(num_rows, np.float32)
    given = [-1] * num_rows if sampling.given is None else sampling.given.tolist()
    for r in range(num_rows):
        if given[r] >= 0:
            tokens[r] = given[r]
        else:
            edits = sampling.edits
            edited = logits[r] if edits is None else edited_row(logits[r], edits, r)
            tokens[r] = sample_row(edited, _row(sampling, r))
        wanted = 0 if sampling.num_logprobs is None else int(sampling.num_logprobs[r])
        logprobs[r] = logprob(logits[r], int(tokens[r])) if wanted >= 0 else np.nan
    rows = SampledRows(tokens, logprobs)
    if sampling.given is not None:
        ranks = [rank_of(logits[r], token) if token >= 0 else 0 for r, token in enumerate(given)]
        rows = replace(rows, ranks=np.array(ranks, np.int32))
    if sampling.num_top == 0 or sampling.num_logprobs is None:
        return rows
    return _with_best(rows, logits, sampling)


def edited_row(logits: NDArray[np.float32], edits: LogitEdits, row: int) -> NDArray[np.float32]:
    """A copy of the logits of `row`, [vocabulary], with its biases and penalties."""
    edited = logits.copy()
    biased = slice(*edits.bias_start[row : row + 2].tolist())
    edited[edits.bias_tokens[biased]] += edits.biases[biased]
    counted = slice(*edits.count_start[row : row + 2].tolist())
    tokens, counts = edits.count_tokens[counted], edits.counts[counted]
    values = edited[tokens]
    penalty = edits.repetition[row]
    values = np.where(values > 0, values / penalty, values * penalty)
    generated = counts > 0
    values[generated] -= edits.frequency[row] * counts[generated].astype(np.float32)
    values[generated] -= edits.presence[row]
    edited[tokens] = values
    return edited


def sample_row(logits: NDArray[np.float32], how: RowSampling) -> int:
    """The token id that one row of logits [vocabulary] gives."""
    if how.temperature == 0.0 or not np.isfinite(logits.max()):
        return int(np.argmax(logits))
    weights = token_weights(logits, how.temperature)
    kept = kept_tokens(logits, how) if how.has_filter else np.arange(logits.shape[0])
    running = np.cumsum(weights[kept], dtype=np.float64)
    target = uniform(how.seed, how.position, how.choice) * running[-1]
    index = int(np.searchsorted(running, target, side="right"))
    return int(kept[min(index, kept.shape[0] - 1)])


def token_weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """exp((logit − max) / temperature) in float32, [vocabulary]; the largest is 1."""
    exponents = (logits - logits.max()) / np.float32(temperature)
    result: NDArray[np.float32] = np.where(exponents < -87, np.float32(0), np.exp(exponents))
    return result


def kept_tokens(logits: NDArray[np.float32], how: RowSampling) -> NDArray[np.intp]:
    """The ids that the filters leave, by logit descending and id ascending; at least one."""
    weights = token_weights(logits, how.temperature)
    # A stable sort of the negated logits leaves ids ascending among equals.
    kept: NDArray[np.intp] = np.argsort(-logits, kind="stable")
    if how.top_k > 0:
        kept = kept[: how.top_k]
    if how.top_p < 1.0:
        running = np.cumsum(weights[kept], dtype=np.float64)
        threshold = np.float64(np.float32(how.top_p)) * running[-1]
        kept = kept[: int(np.searchsorted(running, threshold, side="left")) + 1]
    if how.min_p > 0.0:
        kept = kept[weights[kept] >= np.float32(how.min_p) * weights[kept[0]]]
    return kept


def best_tokens(logits: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """The first `count` of the ranking, or all."""
    ranking: NDArray[np.int32] = np.argsort(-logits, kind="stable")[:count].astype(np.int32)
    return ranking


def rank_of(logits: NDArray[np.float32], token: int) -> int:
    """A token's place in the ranking; 1 is the best."""
    ahead = (logits > logits[token]).sum() + (logits[:token] == logits[token]).sum()
    return int(ahead) + 1


def logprob(logits: NDArray[np.float32], token: int) -> float:
    """Natural logarithm of a token's probability at temperature 1."""
    shifted = (logits - logits.max()).astype(np.float64)
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def _with_best(
    rows: SampledRows, logits: NDArray[np.float32], sampling: SamplingArrays
) -> SampledRows:
    """Adds the best tokens of the rows that want them."""
    assert sampling.num_logprobs is not None
    shape = (logits.shape[0], sampling.num_top)
    tokens, logprobs = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for r, wanted in enumerate(sampling.num_logprobs.tolist()):
        best = best_tokens(logits[r], max(0, wanted))
        tokens[r, : len(best)] = best
        logprobs[r, : len(best)] = [logprob(logits[r], token) for token in best.tolist()]
    return replace(rows, top_tokens=tokens, top_logprobs=logprobs)


def _row(sampling: SamplingArrays, r: int) -> RowSampling:
    return RowSampling(
        temperature=float(sampling.temperature[r]),
        top_k=int(sampling.top_k[r]),
        top_p=float(sampling.top_p[r]),
        min_p=float(sampling.min_p[r]),
        seed=int(sampling.seed[r]),
        position=int(sampling.position[r]),
        choice=int(sampling.choice[r]),
    )


def _wrapping_add(value: NDArray[np.uint32], step: np.uint32) -> NDArray[np.uint32]:
    """Modulo 2³², without numpy's overflow warning for scalars."""
    total: NDArray[np.uint64] = value.astype(np.uint64) + np.uint64(step)
    return (total & _LOW).astype(np.uint32)
