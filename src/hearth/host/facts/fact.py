"""Fact: a value with where it came from, or with why there is none; Tree: facts from files.

A reader of an area returns a frozen dataclass of facts and raises nothing for what it cannot see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hearth.host.files import list_names, read_file, whole_number

T = TypeVar("T")
S = TypeVar("S")

_LONGEST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """One value. `source`: a file or an API. `why`: the reason for None, empty otherwise."""

    value: T | None
    source: str
    why: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def then(self, convert: Callable[[T], S | None], otherwise: str = "not understood") -> Fact[S]:
        """The fact that follows from the value; `otherwise`: why where `convert` gives None."""
        if self.value is None:
            return Fact(None, self.source, self.why)
        converted = convert(self.value)
        if converted is None:
            return Fact(None, self.source, f"{otherwise}: {_shortened(self.value)}")
        return Fact(converted, self.source)


def unknown(source: str, why: str) -> Fact[T]:
    """The fact that there is no value, and why."""
    return Fact(None, source, why)


class Tree:
    """Reads facts from the files below `root`; their source is the path as the host has it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The directory that stands for /."""
        return self._root

    def text(self, name: str) -> Fact[str]:
        """The stripped text of a file; None where it is missing, unreadable or empty."""
        found = read_file(self._root / name)
        text = found.text.strip()
        if text:
            return Fact(text, f"/{name}")
        return Fact(None, f"/{name}", found.why or "empty")

    def number(self, name: str) -> Fact[int]:
        """The whole number that is all of a file."""
        return self.text(name).then(whole_number, "not a number")

    def flag(self, name: str) -> Fact[bool]:
        """Whether the number in a file is other than 0."""
        return self.number(name).then(bool)

    def chosen(self, name: str) -> Fact[str]:
        """The word in brackets of a file like `always [madvise] never`."""
        return self.text(name).then(_bracketed, "nothing is chosen")

    def names(self, name: str) -> list[str]:
        """Names of a directory's entries, cpu2 before cpu10."""
        return list_names(self._root / name)

    def has(self, name: str) -> bool:
        """Whether there is such a file or directory."""
        try:
            return (self._root / name).exists()
        except (OSError, ValueError):
            return False


def first_known(*facts: Fact[T]) -> Fact[T]:
    """The first fact that has a value, else the first of all."""
    return next((fact for fact in facts if fact.value is not None), facts[0])


def _bracketed(text: str) -> str | None:
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end].strip() or None if 0 <= start < end else None


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
