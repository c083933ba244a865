"""Sampling on the device in torch operations: `kernels/reference/sampling` for many rows at once.

Nothing here waits for the device: what decides the way (whether any row has a filter, whether best
tokens are asked for) is known on the host, from the plan. Rows are taken some at a time, so that
sorted copies of the logits stay small. Sums are float64, as the reference's are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.step import LogitEdits, SamplingArrays
from hearth.kernels.triton.memory import rows_at_once
from hearth.kernels.triton.plan_buffer import SamplingTensors

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_LOW = 0xFFFFFFFF
_LEAST_EXPONENT = -87.0

Draw: TypeAlias = Callable[[SamplingTensors], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan asks of its sampling, known on the host."""

    draws: bool  # some row has a temperature
    filters: bool  # some row that draws has top_k, top_p or min_p
    logprobs: bool
    given: bool
    num_top: int
    edits: bool

    @property
    def needs_sort(self) -> bool:
        """Whether a row has more than a temperature and the log-probability of its token."""
        return self.filters or self.given or self.num_top > 0 or self.edits

    @staticmethod
    def of(sampling: SamplingArrays) -> Wanted:
        """Of a plan's arrays."""
        draws = sampling.temperature > 0
        filtered = (sampling.top_k > 0) | (sampling.top_p < 1.0) | (sampling.min_p > 0.0)
        wanted = sampling.num_logprobs
        return Wanted(
            draws=bool(draws.any()),
            filters=bool((draws & filtered).any()),
            logprobs=wanted is None or sampling.num_top > 0 or bool((wanted >= 0).any()),
            given=sampling.given is not None,
            num_top=0 if wanted is None else sampling.num_top,
            edits=sampling.edits is not None,
        )


@dataclass(frozen=True, slots=True)
class EditTensors:
    """`LogitEdits` on the device: an entry a (row, token), and the rows' penalties spread to it."""

    bias_rows: torch.Tensor
    bias_tokens: torch.Tensor
    biases: torch.Tensor
    count_rows: torch.Tensor
    count_tokens: torch.Tensor
    repetition: torch.Tensor
    less: torch.Tensor  # frequency · count, where the token was generated
    presence: torch.Tensor


@dataclass(frozen=True, slots=True)
class SampledTensors:
    """See `reference.sampling.SampledRows`; on the device."""

    tokens: torch.Tensor  # [R] int32
    logprobs: torch.Tensor  # [R] float32
    ranks: torch.Tensor | None = None
    top_tokens: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


def edit_tensors(edits: LogitEdits, device: torch.device) -> EditTensors:
    """Copies edits to the device. Rare enough to be allocated when they come."""

    def rows_of(start: NDArray[np.int32]) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(start) - 1), np.diff(start))

    bias_rows, count_rows = rows_of(edits.bias_start), rows_of(edits.count_start)
    biased = slice(int(edits.bias_start[0]), int(edits.bias_start[-1]))
    counted = slice(int(edits.count_start[0]), int(edits.count_start[-1]))
    counts = edits.counts[counted].astype(np.float32)
    is_generated = counts > 0
    arrays = (
        bias_rows,
        edits.bias_tokens[biased].astype(np.int64),
        edits.biases[biased],
        count_rows,
        edits.count_tokens[counted].astype(np.int64),
        edits.repetition[count_rows],
        np.where(is_generated, edits.frequency[count_rows] * counts, np.float32(0)),
        np.where(is_generated, edits.presence[count_rows], np.float32(0)),
    )
    tensors = (torch.from_numpy(np.array(a)).to(device, non_blocking=True) for a in arrays)
    return EditTensors(*tensors)


def edit(logits: torch.Tensor, edits: EditTensors) -> torch.Tensor:
    """A copy of [R, vocabulary] with biases and penalties."""
    edited = logits.clone()
    where = (edits.bias_rows, edits.bias_tokens)
    edited[where] = edited[where] + edits.biases
    where = (edits.count_rows, edits.count_tokens)
    values = edited[where]
    values = torch.where(values > 0, values / edits.repetition, values * edits.repetition)
    edited[where] = values - edits.less - edits.presence
    return edited


def uniforms(how: SamplingTensors) -> torch.Tensor:
    """(first word of Philox4x32-10 >> 8 + ½) · 2⁻²⁴, [R] float64.

    Products are taken modulo 2⁶⁴ in int64, whose bits are those of unsigned ones.
    """
    zero = torch.zeros_like(how.position, dtype=torch.int64)
    words = [how.position.long() & _LOW, how.choice.long() & _LOW, zero, zero]
    keys = [how.seed_low.long() & _LOW, how.seed_high.long() & _LOW]
    for _ in range(_NUM_ROUNDS):
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (second >> 32 & _LOW) ^ words[1] ^ keys[0],
            second & _LOW,
            (first >> 32 & _LOW) ^ words[3] ^ keys[1],
            first & _LOW,
        ]
        keys = [key + step & _LOW for key, step in zip(keys, _WEYL)]
    return ((words[0] >> 8).double() + 0.5) * 2.0**-24


def sample(
    logits: torch.Tensor,
    how: SamplingTensors,
    wanted: Wanted,
    edits: EditTensors | None = None,
    draw: Draw | None = None,
) -> SampledTensors:
    """One token a row of raw logits, [R, vocabulary] float32; `draw`: None for `uniforms`."""
    edited = logits if edits is None else edit(logits, edits)
    tokens = edited.argmax(dim=-1)  # the first of equals
    if wanted.draws:
        u = (draw or uniforms)(how)
        drawn = _in_parts(edited, how, u, filters=wanted.filters)
        is_drawn = (how.temperature > 0) & edited.amax(dim=-1).isfinite()
        tokens = torch.where(is_drawn, drawn, tokens)
    if wanted.given:
        tokens = torch.where(how.given >= 0, how.given.long(), tokens)
    ranks = _ranks(logits, how.given) if wanted.given else None
    logprobs = torch.full(tokens.shape, torch.nan, dtype=torch.float32, device=logits.device)
    top_tokens = top_logprobs = None
    if wanted.logprobs:
        norms = _log_sums(logits)
        own = _logprobs(logits, tokens[:, None], norms)[:, 0]
        logprobs = torch.where(how.num_logprobs >= 0, own, logprobs)
        if wanted.num_top:
            top_tokens, top_logprobs = _best(logits, norms, how.num_logprobs, wanted.num_top)
    return SampledTensors(tokens.int(), logprobs, ranks, top_tokens, top_logprobs)


def _in_parts(
    logits: torch.Tensor, how: SamplingTensors, u: torch.Tensor, *, filters: bool
) -> torch.Tensor:
    """Draws some rows at a time."""
    count = rows_at_once(logits.shape[1])
    parts = []
    for first in range(0, logits.shape[0], count):
        rows = slice(first, first + count)
        filtering = None
        if filters:
            filtering = _Filters(how.top_k[rows], how.top_p[rows], how.min_p[rows])
        parts.append(_draw(logits[rows], how.temperature[rows], u[rows], filtering))
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class _Filters:
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def _draw(
    logits: torch.Tensor, temperature: torch.Tensor, u: torch.Tensor, filters: _Filters | None
) -> torch.Tensor:
    """Walks over the kept tokens until their running weight exceeds u · their sum; [n] int64."""
    safe = torch.where(temperature > 0, temperature, 1.0)[:, None]
    exponents = (logits - logits.amax(dim=-1, keepdim=True)) / safe
    weights = torch.where(exponents < _LEAST_EXPONENT, 0.0, exponents.exp())
    order = None
    num_kept = torch.full_like(u, logits.shape[1], dtype=torch.int64)
    if filters is not None:
        order, weights, num_kept = _filtered(logits, weights, filters)
    running = weights.cumsum(dim=-1, dtype=torch.float64)
    target = u * running[:, -1]
    index = (running <= target[:, None]).sum(dim=-1)
    index = torch.minimum(index, num_kept - 1)
    return index if order is None else order.gather(1, index[:, None])[:, 0]


def _filtered(
    logits: torch.Tensor, weights: torch.Tensor, filters: _Filters
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order of the walk [n, vocabulary], weights in it with zeros for what is left out, counts.

    Rows without a filter keep the order of ids.
    """
    top_k, top_p, min_p = (x[:, None] for x in (filters.top_k, filters.top_p, filters.min_p))
    is_ranked = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
    place = torch.arange(logits.shape[1], device=logits.device)
    ranking = logits.sort(dim=-1, descending=True, stable=True).indices
    order = torch.where(is_ranked, ranking, place)
    weights = weights.gather(1, order)
    keeps = (top_k <= 0) | (place < top_k)
    running = torch.where(keeps, weights, 0.0).cumsum(dim=-1, dtype=torch.float64)
    threshold = top_p.double() * running[:, -1:]
    before = torch.cat((torch.zeros_like(running[:, :1]), running[:, :-1]), dim=1)
    keeps &= (top_p >= 1.0) | (before < threshold) | (place == 0)
    keeps &= (min_p <= 0.0) | (weights >= min_p * weights[:, :1])
    return order, torch.where(keeps, weights, 0.0), keeps.sum(dim=-1)


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of Σ exp(logit − largest), [R, 1] float64, some rows at a time."""
    parts = []
    for part in torch.split(logits, rows_at_once(logits.shape[1])):
        shifted = (part - part.amax(dim=-1, keepdim=True)).double()
        parts.append(shifted.exp().sum(dim=-1, keepdim=True).log())
    return torch.cat(parts) if parts else logits.new_zeros((0, 1), dtype=torch.float64)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor, log_sums: torch.Tensor) -> torch.Tensor:
    """Of tokens [R, n]; float32."""
    shifted = logits.gather(1, tokens) - logits.amax(dim=-1, keepdim=True)
    return (shifted.double() - log_sums).float()


def _ranks(logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Places of given tokens by raw logit, 1 the best; 0 where none is given."""
    tokens = given.clamp(min=0).long()[:, None]
    own = logits.gather(1, tokens)
    ids = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < tokens))
    return torch.where(given >= 0, ahead.sum(dim=-1) + 1, 0).int()


def _best(
    logits: torch.Tensor, log_sums: torch.Tensor, counts: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first tokens of the ranking and their log-probabilities, as many as each row asks for."""
    parts = [
        part.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
        for part in torch.split(logits, rows_at_once(logits.shape[1]))
    ]
    tokens = torch.cat(parts) if parts else logits.new_zeros((0, num_top), dtype=torch.int64)
    logprobs = _logprobs(logits, tokens, log_sums)
    is_asked = torch.arange(tokens.shape[1], device=logits.device) < counts[:, None]
    tokens = torch.where(is_asked, tokens, -1).int()
    logprobs = torch.where(is_asked, logprobs, 0.0)
    missing = num_top - tokens.shape[1]  # of a vocabulary with fewer tokens
    if missing > 0:
        tokens = torch.nn.functional.pad(tokens, (0, missing), value=-1)
        logprobs = torch.nn.functional.pad(logprobs, (0, missing))
    return tokens, logprobs
