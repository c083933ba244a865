"""The table of facts that the built-in model knows, read from `data/*.txt`.

A file is a list of facts. `## key` opens one; `en: …` and `zh: …` are its answers; every other
line is `language kind: grammar`, a way to ask for it. The kinds are `ask` (a whole question),
`do`/`cmd`/`flag` (what someone wants to do), `noun` (a thing to be explained) and `use` (a thing
whose purpose is asked). The answers must be true of hearth as it is in this repository.
"""

import random
from dataclasses import dataclass, field
from functools import cache

from tools.demo_model.phrasing import (
    Grammar,
    data_lines,
    draw,
    frame_phrase,
    load_frames,
    parse,
)

LANGUAGES = ("en", "zh")
FACT_FILES = ("general.txt", "commands.txt", "network.txt", "flags.txt", "engine.txt")
CHAT_FILES = ("chat.txt",)


@dataclass(frozen=True, slots=True)
class Ask:
    """One way of asking: the phrase grammar and the kind of frame it is set into."""

    kind: str
    grammar: Grammar


@dataclass(slots=True)
class Fact:
    """One fact: per language its answer and the ways to ask for it."""

    key: str
    answers: dict[str, str] = field(default_factory=dict)
    asks: dict[str, list[Ask]] = field(default_factory=dict)


@cache
def load_facts(files: tuple[str, ...] = FACT_FILES) -> tuple[Fact, ...]:
    """The facts of the files; raises ValueError where a fact lacks an answer or a question."""
    macros = load_frames().macros
    facts: list[Fact] = []
    for name in files:
        for line in data_lines(name):
            if line.startswith("## "):
                facts.append(Fact(line.removeprefix("## ")))
                continue
            head, _, body = line.partition(": ")
            language, _, kind = head.partition(" ")
            if kind:
                ask = Ask(kind, parse(body, macros))
                facts[-1].asks.setdefault(language, []).append(ask)
            else:
                facts[-1].answers[language] = body
    for fact in facts:
        if set(fact.answers) != set(LANGUAGES) or set(fact.asks) != set(LANGUAGES):
            raise ValueError(f"fact {fact.key!r} needs an answer and questions in {LANGUAGES}")
    return tuple(facts)


def draw_question(fact: Fact, language: str, rng: random.Random) -> str:
    """One random question for the fact, without surface noise."""
    asks = fact.asks[language]
    # A framed phrase multiplies its variants by those of its frames.
    weights = [ask.grammar.weight * (1.0 if ask.kind == "ask" else 2.0) for ask in asks]
    ask = rng.choices(asks, weights=weights)[0]
    return frame_phrase(draw(ask.grammar, rng), ask.kind, language, rng)
