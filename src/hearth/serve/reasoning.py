"""Reasoning apart from the answer: `<think>…</think>` at a text's beginning, as it streams.

Off unless the server was asked for it (`--reasoning-parser`): clients that send an answer back as
history, phone agents among them, need what the model wrote, marks and all.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Split(NamedTuple):
    """New text, by what it is."""

    reasoning: str
    content: str


class ReasoningSplitter:
    """Splits one answer. Feed pieces in order; how the text is cut into them changes nothing.

    The marks are left out, and blanks before the first one; everything else stays as it is. A
    text that does not begin with `<think>` is content; one without `</think>` is all reasoning.
    """

    __slots__ = ("_held", "_state")

    def __init__(self, *, is_open: bool = False) -> None:
        """`is_open`: the prompt ends with `<think>`, as some chat templates have it."""
        self._state: Literal["before", "inside", "behind"] = "inside" if is_open else "before"
        self._held = ""

    def feed(self, piece: str) -> Split:
        """Returns what is now certain; the beginning of what may become a mark is held back."""
        if self._state == "behind":
            return Split("", piece)
        text, self._held = self._held + piece, ""
        if self._state == "before":
            begun = text.lstrip()
            if not begun.startswith(OPEN):
                if OPEN.startswith(begun):
                    self._held = text
                    return Split("", "")
                self._state = "behind"
                return Split("", text)
            self._state, text = "inside", begun[len(OPEN) :]
        reasoning, mark, content = text.partition(CLOSE)
        if mark:
            self._state = "behind"
            return Split(reasoning, content)
        num_certain = len(text) - _num_begun(text, CLOSE)
        self._held = text[num_certain:]
        return Split(text[:num_certain], "")

    def flush(self) -> Split:
        """Returns what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return Split(held, "") if self._state == "inside" else Split("", held)


def split_reasoning(text: str, *, is_open: bool = False) -> Split:
    """A whole answer's."""
    splitter = ReasoningSplitter(is_open=is_open)
    first, last = splitter.feed(text), splitter.flush()
    return Split(first.reasoning + last.reasoning, first.content + last.content)


def ends_inside(text: str) -> bool:
    """Whether what is written behind this text goes on with its reasoning."""
    return text.lstrip().startswith(OPEN) and CLOSE not in text


def _num_begun(text: str, mark: str) -> int:
    """Characters at the text's end with which the mark begins, but not all of it."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
