"""Log-probabilities of a step's rows, from arrays to what an event carries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearth.core.request import PromptLogprobs, TokenLogprobs
from hearth.core.step import StepResult
from hearth.engine.decision import StepDecision
from hearth.engine.sequence import Sequence


def row_logprobs(wanted: NDArray[np.int32], result: StepResult) -> list[TokenLogprobs | None]:
    """One entry a logits row; None for a row that does not ask. `wanted`: as in SamplingArrays."""
    rows: list[TokenLogprobs | None] = [None] * len(wanted)
    for row, (count, logprob) in enumerate(zip(wanted.tolist(), result.logprobs.tolist())):
        if count < 0:
            continue
        top: tuple[tuple[int, float], ...] = ()
        if count and result.top_tokens is not None and result.top_logprobs is not None:
            tokens = result.top_tokens[row, :count].tolist()
            values = result.top_logprobs[row, :count].tolist()
            top = tuple((token, value) for token, value in zip(tokens, values) if token >= 0)
        rows[row] = TokenLogprobs(logprob, top)
    return rows


def prompt_logprobs(decision: StepDecision, result: StepResult) -> list[PromptLogprobs | None]:
    """One entry a sequence of the decision: what its given rows say, before they are committed."""
    found: list[PromptLogprobs | None] = []
    row = 0
    for index, sequence in enumerate(decision.sequences):
        num_given = decision.num_given[index]
        found.append(_packed(sequence, result, row, row + num_given) if num_given else None)
        row += decision.num_logits[index]
    return found


def _packed(sequence: Sequence, result: StepResult, first: int, end: int) -> PromptLogprobs:
    """Rows first … end−1 of a result."""
    assert result.ranks is not None, "given tokens without ranks"
    num_top = sequence.request.sampling.num_prompt_logprobs
    tokens = values = b""
    if num_top and result.top_tokens is not None and result.top_logprobs is not None:
        tokens = result.top_tokens[first:end, :num_top].tobytes()
        values = result.top_logprobs[first:end, :num_top].tobytes()
    return PromptLogprobs(
        sequence.num_scored,
        num_top,
        result.logprobs[first:end].tobytes(),
        result.ranks[first:end].tobytes(),
        tokens,
        values,
    )
