"""A small grammar language for questions, and the sentence frames shared by all facts.

Owns the parsing of grammar lines and the drawing of random sentences from them. It never knows
which facts exist. Every draw is a pure function of the `random.Random` that is passed in.

The grammar language: text is literal; `[a|b|]` (or the same with round brackets) chooses one of
its alternatives, which may be empty and may nest; `<name>` stands for the macro of that name;
`{}` is the slot that a frame leaves for a phrase.
"""

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"

SLOT = "{}"
# A phrase kind draws its sentence frames from these frame kinds.
FRAMES_OF_KIND = {
    "do": ("do",),
    "cmd": ("do", "cmd"),
    "flag": ("do", "flag"),
    "noun": ("noun",),
    "use": ("use",),
}
# Large grammars are drawn more often than small ones, but not in proportion: the square root
# keeps a line with three variants visible beside one with three hundred.
WEIGHT_EXPONENT = 0.5
WEIGHT_LIMIT = 400


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences of parts, each equally likely."""

    alternatives: tuple["Grammar", ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A sequence of literals and choices, with the number of distinct ways to draw it."""

    parts: tuple[str | Choice, ...]
    num_variants: int

    @property
    def weight(self) -> float:
        """How often this grammar is drawn relative to its neighbours."""
        return float(min(self.num_variants, WEIGHT_LIMIT) ** WEIGHT_EXPONENT)


def draw(grammar: Grammar, rng: random.Random) -> str:
    """One random sentence of the grammar; runs of blanks are kept as written."""
    pieces = []
    for part in grammar.parts:
        if isinstance(part, str):
            pieces.append(part)
        else:
            pieces.append(draw(rng.choice(part.alternatives), rng))
    return "".join(pieces)


def parse(text: str, macros: dict[str, str] | None = None) -> Grammar:
    """The grammar written in `text`; raises ValueError on unbalanced brackets."""
    for name, body in (macros or {}).items():
        text = text.replace(f"<{name}>", body)
    grammar, end = _parse_sequence(text, 0, top=True)
    if end != len(text):
        raise ValueError(f"unbalanced bracket at character {end} of {text!r}")
    return grammar


def _parse_sequence(text: str, start: int, *, top: bool) -> tuple[Grammar, int]:
    parts: list[str | Choice] = []
    num_variants, literal, at = 1, "", start
    while at < len(text):
        char = text[at]
        if char in "[(":
            choice, at = _parse_choice(text, at + 1)
            num_variants *= sum(one.num_variants for one in choice.alternatives)
            parts += [literal, choice] if literal else [choice]
            literal = ""
        elif char in "])" or (char == "|" and not top):
            break
        else:
            literal += char
            at += 1
    if literal:
        parts.append(literal)
    return Grammar(tuple(parts), num_variants), at


def _parse_choice(text: str, start: int) -> tuple[Choice, int]:
    alternatives = []
    at = start
    while True:
        grammar, at = _parse_sequence(text, at, top=False)
        alternatives.append(grammar)
        if at >= len(text):
            raise ValueError(f"bracket opened before character {start} of {text!r} never closes")
        at += 1
        if text[at - 1] in "])":
            return Choice(tuple(alternatives)), at


@dataclass(frozen=True, slots=True)
class Frames:
    """The macros, and per (language, frame kind) the frames to draw from."""

    macros: dict[str, str]
    frames: dict[tuple[str, str], tuple[Grammar, ...]]


@cache
def load_frames() -> Frames:
    """The frames of `data/frames.txt`, parsed once."""
    macros: dict[str, str] = {}
    frames: dict[tuple[str, str], list[Grammar]] = {}
    for line in data_lines("frames.txt"):
        head, _, body = line.partition(": ")
        if head.startswith("macro "):
            macros[head.removeprefix("macro ")] = body
            continue
        language, kind = head.split()
        frames.setdefault((language, kind), []).append(parse(body, macros))
    return Frames(macros, {key: tuple(value) for key, value in frames.items()})


def data_lines(name: str) -> list[str]:
    """The lines of a data file without comments and empty lines."""
    lines = (DATA_DIR / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not re.match(r"#(?!#)", line)]


def draw_weighted(grammars: tuple[Grammar, ...], rng: random.Random) -> str:
    """One sentence of one of the grammars, larger grammars being likelier."""
    chosen = rng.choices(grammars, weights=[one.weight for one in grammars])[0]
    return draw(chosen, rng)


def frame_phrase(phrase: str, kind: str, language: str, rng: random.Random) -> str:
    """The phrase set into a sentence frame of its kind ("ask" needs none)."""
    if kind == "ask":
        return phrase
    table = load_frames().frames
    kinds = [name for name in FRAMES_OF_KIND[kind] if (language, name) in table]
    if not kinds:
        kinds = ["do"]
    frames = table[language, rng.choice(kinds)]
    return draw_weighted(frames, rng).replace(SLOT, phrase)
