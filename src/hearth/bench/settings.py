"""What a benchmark run is told, resolved and frozen; ranges are checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hearth.core.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
OBJECTIVES = ("ttft", "tpot", "e2el")
CHAT = "openai-chat"
COMPLETIONS = "openai"
_PATHS = {CHAT: "/v1/chat/completions", COMPLETIONS: "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Query:
    """How a prompt becomes a request body. `ignore_eos` is sent only where it is true."""

    model: str
    backend: str = CHAT
    endpoint: str | None = None
    temperature: float | None = 0.0
    ignore_eos: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The endpoint's path."""
        return self.endpoint or _PATHS[self.backend]


@dataclass(frozen=True, slots=True)
class Load:
    """When requests start. `request_rate` inf: all at once, bounded by `max_concurrency`.

    `burstiness` is the shape of the gamma distribution of intervals: 1 is a Poisson process,
    smaller is burstier, larger is more even.
    """

    num_prompts: int = 100
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    num_warmups: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DatasetChoice:
    """Which prompts. `range_ratio` r: lengths are uniform in [(1 - r) n, (1 + r) n]."""

    name: str = "random"
    path: str | None = None
    input_len: int = 256
    output_len: int = 64
    range_ratio: float = 0.0
    num_turns: int = 4


def parse_objectives(words: Sequence[str]) -> dict[str, float]:
    """`ttft:200 tpot:50` → milliseconds by name. Raises ConfigError."""
    found: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        name, _, number = word.partition(":")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in OBJECTIVES or not limit > 0:
            raise ConfigError(
                f"--goodput {word!r} is not an objective (permitted: {', '.join(OBJECTIVES)}, "
                "each with milliseconds above 0)",
                hint="write for instance: --goodput ttft:500 tpot:100",
            )
        found[name] = limit
    return found


def parse_percentiles(text: str) -> tuple[float, ...]:
    """`50,99` → numbers. Raises ConfigError."""
    try:
        found = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = (math.nan,)
    if not found or not all(0 <= value <= 100 for value in found):
        raise ConfigError(
            f"--metric-percentiles {text!r} is not a list of percentiles (permitted: numbers from "
            "0 to 100, separated by commas)",
            hint="write for instance: --metric-percentiles 50,90,99",
        )
    return found


def parse_metrics(text: str) -> tuple[str, ...]:
    """`ttft,itl` → names of METRICS. Raises ConfigError."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in found if word not in METRICS]
    if unknown or not found:
        raise ConfigError(
            f"--percentile-metrics {text!r}: {', '.join(unknown) or 'nothing'} is not a metric "
            f"(permitted: {', '.join(METRICS)})"
        )
    return found
