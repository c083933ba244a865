"""Sampling of one request: what it asked for, else the model's default, else OpenAI's.

A seed is drawn here where none is given, so that an answer can be continued after a crash.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from hearth.core.config import Choice
from hearth.core.request import SamplingParams

MAX_SEED = 2**64 - 1
# OpenAI's defaults; top_k and min_p do not exist there and are off.
_FALLBACK = {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class SamplingChoices:
    """What a request says about sampling; None: nothing. Ranges were checked at the edge."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # −1 and 0: all
    min_p: float | None = None
    seed: int | None = None


def resolve_sampling(asked: SamplingChoices, defaults: Mapping[str, float]) -> SamplingParams:
    """Complete parameters; `defaults` are the model's own, by the names of generation_config."""

    def pick(name: str, value: float | None) -> float:
        return value if value is not None else defaults.get(name, _FALLBACK[name])

    return SamplingParams(
        temperature=pick("temperature", asked.temperature),
        top_p=pick("top_p", asked.top_p),
        top_k=max(0, int(pick("top_k", asked.top_k))),
        min_p=pick("min_p", asked.min_p),
        seed=random.getrandbits(64) if asked.seed is None else asked.seed,
    )


def sampling_choice(defaults: Mapping[str, float]) -> Choice:
    """The defaults as one line of the banner."""
    known = {name: defaults[name] for name in _FALLBACK if name in defaults}
    shown = ", ".join(f"{name} {value:g}" for name, value in {**_FALLBACK, **known}.items())
    if not known:
        return Choice("sampling", shown, "OpenAI's defaults; the model's files give none")
    return Choice("sampling", shown, f"{', '.join(known)} from the model's generation_config.json")
