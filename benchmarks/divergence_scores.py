"""How far logits are from those of a reference, over the same tokens.

The reference's logits lie in a file that is mapped, so that a model is compared with it sequence
by sequence and neither is ever whole in memory. Errors are standard errors over sequences, not
tokens: neighbours in a text err together, and would make an error look smaller than it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, KernelError
from hearth.core.units import format_bytes

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and its standard error over sequences."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True)
class Score:
    """Of one model against the reference. Divergence in nats; `change` and `top1` are shares."""

    num_tokens: int
    perplexity: Estimate
    change: Estimate  # of the perplexity, from the paired logarithms of the tokens
    kl: Estimate
    top1: Estimate


class Reference:
    """float32 logits [num_sequences, length, vocabulary] in a file, which `close` removes."""

    def __init__(self, path: Path, sequences: Sequence[Sequence[int]], vocab_size: int) -> None:
        """All sequences are of one length. Raises CapacityError where the disk has no room."""
        self._sequences = np.array(sequences, np.int64)
        self._path = path
        shape = (*self._sequences.shape, vocab_size)
        needed = 4 * int(np.prod(shape))
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise CapacityError(
                f"the reference's logits need {format_bytes(needed)}, {path.parent} has "
                f"{format_bytes(free)} free",
                hint="lower --sequences, or name a directory on another disk with --work",
            )
        self._logits = np.memmap(path, np.float32, "w+", shape=shape)

    def fill(self, logits: Iterable[Logits]) -> None:
        """[length, vocabulary] of each sequence, in order."""
        for row, one in zip(self._logits, logits, strict=True):
            row[:] = one

    def score(self, logits: Iterable[Logits]) -> Score:
        """Of logits as `fill` takes them. Raises KernelError where one is not finite."""
        rows = [
            _columns(_logprobs(ours), _logprobs(theirs), tokens)
            for ours, theirs, tokens in zip(self._logits, logits, self._sequences, strict=True)
        ]
        return score_of(np.stack(rows))

    def own_score(self) -> Score:
        """Of the reference against itself: its perplexity."""
        return self.score(self._logits)

    def close(self) -> None:
        """Removes the file."""
        del self._logits
        self._path.unlink(missing_ok=True)


def _logprobs(logits: Logits) -> Floats:
    """Of all positions that a token follows, [length - 1, vocabulary]."""
    if not np.isfinite(logits).all():
        raise KernelError("logits are not finite: there is nothing to compare")
    values = logits[:-1].astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def _columns(reference: Floats, model: Floats, tokens: NDArray[np.int64]) -> Floats:
    """Log-probability of the tokens by both, divergence, same best token: [4, length - 1]."""
    at = np.arange(len(reference))
    own, other = reference[at, tokens[1:]], model[at, tokens[1:]]
    kl = (np.exp(reference) * (reference - model)).sum(axis=-1)
    same = reference.argmax(axis=-1) == model.argmax(axis=-1)
    return np.stack([own, other, kl, same])


def score_of(columns: Floats) -> Score:
    """Of [num_sequences, 4, num_tokens]: see `_columns`."""
    own, other, kl, same = np.moveaxis(columns.mean(axis=-1), 1, 0)
    loss, ln_ratio = _estimate(-other), _estimate(own - other)
    return Score(
        num_tokens=columns.shape[0] * columns.shape[2],
        perplexity=_exponential(loss),
        change=Estimate(float(np.expm1(ln_ratio.mean)), _exponential(ln_ratio).error),
        kl=_estimate(kl),
        top1=_estimate(same),
    )


def _estimate(means: Floats) -> Estimate:
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
    return Estimate(float(means.mean()), float(error))


def _exponential(logarithm: Estimate) -> Estimate:
    value = float(np.exp(logarithm.mean))
    return Estimate(value, value * logarithm.error)


def spread(ids: Sequence[int], count: int, length: int) -> list[list[int]]:
    """`count` pieces of `length` tokens, evenly spread over a text; fewer where it is short."""
    whole = len(ids) // length
    chosen = np.linspace(0, max(0, whole - 1), min(count, whole)).round().astype(int)
    return [list(ids[length * at : length * (at + 1)]) for at in chosen]
