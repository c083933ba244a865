"""The rows of the table: what each asks of an engine, and how a figure follows from its times."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrivals = Sequence[Sequence[float]]  # of each stream the moment of each token
DECODE = "decode-1"
LEAST_STEPS = 4  # that all streams must decode together


@dataclass(frozen=True)
class RowSpec:
    """One measured request, or several at once."""

    name: str
    title: str
    num_streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Whether reading the prompt is what is measured."""
        return self.new_tokens == 1

    @property
    def length(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prompt_tokens + self.new_tokens


def row_specs(stream_prompt: int) -> tuple[RowSpec, ...]:
    """Throughput rows; all lengths are fixed."""
    return (
        RowSpec(DECODE, "decode, 1 stream, tokens/s", 1, 128, 64),
        RowSpec("prefill-512", "prefill 512, tokens/s", 1, 512, 1),
        RowSpec("prefill-2048", "prefill 2048, tokens/s", 1, 2048, 1),
        RowSpec("streams-8", "8 streams, tokens/s", 8, stream_prompt, 32),
        RowSpec("streams-32", "32 streams, tokens/s", 32, stream_prompt, 24),
    )


FIRST = RowSpec("start", "process start → first token, warm, s", 1, 128, 1)
# Before anything but the start is measured: what engines make at their first longer prompt.
WARM_UP = RowSpec("warm-up", "", 1, 512, 8)
# Rows that no request of their own measures, and whether less is better.
LESS_IS_BETTER = frozenset({"start", "memory"})


def prompts_of(spec: RowSpec, seed: int, first: int, vocabulary: int) -> list[list[int]]:
    """Distinct prompts, other ones in every round and the same for all engines of a round."""
    random = np.random.default_rng([seed, spec.prompt_tokens, spec.num_streams])
    shape = (spec.num_streams, spec.prompt_tokens)
    ids: list[list[int]] = random.integers(first, vocabulary, shape).tolist()
    return ids


def figure(spec: RowSpec, begin: float, arrivals: Arrivals) -> float:
    """Tokens a second.

    Prefill: tokens of the prompt by the time to the first token. Decode: tokens that arrive between
    the moment at which the last stream has its first token and the one at which the first stream
    has its last, so that only steps in which every stream takes part count. Between two arrivals of
    a stream its count grows evenly: the arrivals of one step are not one moment over a network.
    """
    if any(len(times) != spec.new_tokens for times in arrivals):
        raise ValueError(f"{spec.name}: {[len(t) for t in arrivals]} tokens came")
    if spec.is_prefill:
        return spec.num_streams * spec.prompt_tokens / (max(t[0] for t in arrivals) - begin)
    first, last = max(t[0] for t in arrivals), min(t[-1] for t in arrivals)
    counts = [_count(times, last) - _count(times, first) for times in arrivals]
    if min(counts) < LEAST_STEPS:
        raise ValueError(f"{spec.name}: the streams decode only {min(counts):.1f} steps together")
    return sum(counts) / (last - first)


def _count(times: Sequence[float], moment: float) -> float:
    """Tokens that have come, with fractions between two arrivals."""
    index = bisect.bisect_right(times, moment)
    if index in {0, len(times)}:
        return float(index)
    return index + (moment - times[index - 1]) / (times[index] - times[index - 1])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles."""
    if not values:
        return {"median": None, "q1": None, "q3": None, "values": []}
    q1, median, q3 = (float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
    return {"median": median, "q1": q1, "q3": q3, "values": list(values)}
