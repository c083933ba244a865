"""Sampling of one request: what it asked for, else the model's default, else OpenAI's.

A seed is drawn here where none is given, so that an answer can be continued after a crash.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hearth.core.config import Choice
from hearth.core.errors import RequestError
from hearth.core.request import SamplingParams
from hearth.core.units import format_count
from hearth.engine.text.tokenizer import Tokenizer
from hearth.models.generation_config import GenerationDefaults

MAX_SEED = 2**64 - 1
# OpenAI's defaults; the last three do not exist there and are off.
_FALLBACK = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, slots=True)
class SamplingChoices:
    """What a request says about sampling; None: nothing. Ranges were checked at the edge."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # −1 and 0: all
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int | None = None
    num_logprobs: int = -1  # −1: none; k: of the k best tokens too
    num_prompt_logprobs: int = -1


def resolve_sampling(asked: SamplingChoices, defaults: GenerationDefaults) -> SamplingParams:
    """Complete parameters for one request."""
    fallback = {**_FALLBACK, **_given(defaults)}

    def pick(name: str, value: float | None) -> float:
        return fallback[name] if value is None else value

    return SamplingParams(
        temperature=pick("temperature", asked.temperature),
        top_p=pick("top_p", asked.top_p),
        top_k=max(0, int(pick("top_k", asked.top_k))),
        min_p=pick("min_p", asked.min_p),
        seed=random.getrandbits(64) if asked.seed is None else asked.seed,
        frequency_penalty=asked.frequency_penalty or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        repetition_penalty=pick("repetition_penalty", asked.repetition_penalty),
        logit_bias=tuple(asked.logit_bias.items()),
        min_tokens=asked.min_tokens or 0,
        num_logprobs=asked.num_logprobs,
        num_prompt_logprobs=asked.num_prompt_logprobs,
    )


# Stands for any text before: what follows it is encoded without the space that tokenizers such as
# Llama 2's put before a text.
_ANCHOR = "\n"


def bad_word_tokens(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell the words: at the beginning, after a space, within a word.

    The form after a space is taken where it has as many tokens as the first and begins with another
    one (vLLM's rule). Where the tokenizer puts a space before every text, that rule alone would
    never give the form that stands in the middle of one. Takes about a microsecond a character.
    Raises RequestError for a word without a token.
    """
    found: dict[tuple[int, ...], None] = {}
    anchor = tokenizer.encode(_ANCHOR)
    for word in words:
        plain = tuple(tokenizer.encode(word.lstrip()))
        spaced = tuple(tokenizer.encode(" " + word.lstrip()))
        if not plain:
            raise RequestError(
                f"bad_words: {word[:40]!r} holds nothing but spaces (permitted: words)",
                hint="to forbid single tokens, give them a logit_bias of -100",
                param="bad_words",
            )
        found[plain] = None
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            found[spaced] = None
        anchored = tokenizer.encode(_ANCHOR + word.lstrip())
        bare = tuple(anchored[len(anchor) :])
        if bare and anchored[: len(anchor)] == anchor:
            found[bare] = None
    return tuple(found)


def sampling_choice(defaults: GenerationDefaults) -> Choice:
    """The defaults as one line of the banner."""
    given = _given(defaults)
    shown = ", ".join(f"{name} {value:g}" for name, value in {**_FALLBACK, **given}.items())
    if defaults.max_new_tokens is not None:
        shown += f", max_tokens {format_count(defaults.max_new_tokens)}"
        given["max_tokens"] = defaults.max_new_tokens
    if not given:
        return Choice("sampling", shown, f"OpenAI's defaults ({defaults.reason})")
    return Choice("sampling", shown, f"{', '.join(given)}: {defaults.reason}")


def _given(defaults: GenerationDefaults) -> dict[str, float]:
    """What the model's files say."""
    found = {name: getattr(defaults, name) for name in _FALLBACK}
    return {name: float(value) for name, value in found.items() if value is not None}
