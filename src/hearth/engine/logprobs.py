"""Log-probabilities of a step's rows, from arrays to what an event carries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearth.core.request import TokenLogprobs
from hearth.core.step import StepResult


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
