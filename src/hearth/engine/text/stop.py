"""Stop strings: finds the first one in a stream of text pieces and withholds what could become one.

Which match wins does not depend on how the text is cut into pieces: the one that is complete
first, and among those that end at the same character the longest. The stop string itself, and
everything after it, is left out.

Invariant: `_held` is the longest suffix of the text so far that is a proper prefix of a stop
string, so it is shorter than the longest stop string and no stop string ends inside it.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Filters one answer's text. Feed pieces in order; after a match everything is swallowed."""

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are non-empty strings; none at all makes `feed` the identity."""
        assert all(stops), "an empty stop string matches everywhere; requests are checked before"
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """Returns the text that is now certain to belong to the answer."""
        if not self._stops:
            return piece
        if self.matched is not None or not piece:
            return ""
        text = self._held + piece
        cut = self._find(text)
        if cut is None:
            cut = _first_open(text, self._stops)
            self._held = text[cut:]
        else:
            self._held = ""
        return text[:cut]

    def flush(self) -> str:
        """Returns what was withheld, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Start of the match that ends first in `text`; sets `matched`."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
                self.matched = stop
        return None if best is None else best[1]


def _first_open(text: str, stops: Sequence[str]) -> int:
    """The smallest index from which `text` runs to its end as a proper prefix of a stop string."""
    first = len(text)
    for stop in stops:
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while 0 <= start < first:
            if stop.startswith(text[start:]):
                first = start
                break
            start = text.find(stop[0], start + 1)
    return first
