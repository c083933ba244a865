"""How likely guesses come true: by the length of the match that they rest on.

Guesses are made and compared with every token that comes, also where nothing is drafted: that costs
a comparison, no row of a step. So a text that begins to repeat itself is noticed without being
tried, and drafts cannot paint their own picture. Recent guesses weigh more. What a single text has
not shown yet is taken from all texts, and before there were any from `_FIRST_RATES`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

# A class holds matches of 2–3, 4–7, 8–15 and more tokens.
NUM_CLASSES = 4
_FIRST_RATES = (0.25, 0.5, 0.75, 0.9)
_ALL_DECAY, _ALL_WEIGHT = 0.99, 8.0
_OWN_DECAY, _OWN_WEIGHT = 0.95, 4.0


class GuessRecord:
    """Decayed counts of the guesses in one text and of those that came true, by class."""

    __slots__ = ("_decay", "_hits", "_tries")

    def __init__(self, decay: float = _OWN_DECAY) -> None:
        self._decay = decay
        self._hits = [0.0] * NUM_CLASSES
        self._tries = [0.0] * NUM_CLASSES

    def note(self, length: int, is_hit: bool) -> None:
        """A guess from a match of `length` tokens was compared with what came."""
        which = length_class(length)
        self._hits[which] = self._hits[which] * self._decay + is_hit
        self._tries[which] = self._tries[which] * self._decay + 1

    def rate(self, which: int, prior: float, weight: float = _OWN_WEIGHT) -> float:
        """The share of a class that comes true; `prior` counts like `weight` guesses."""
        return (self._hits[which] + weight * prior) / (self._tries[which] + weight)


class AllGuesses(GuessRecord):
    """The guesses in all texts: what is to be expected of one that has shown little."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_ALL_DECAY)

    def rates(self) -> list[float]:
        """By class."""
        return [self.rate(c, first, _ALL_WEIGHT) for c, first in enumerate(_FIRST_RATES)]


def reach(
    own: GuessRecord, priors: Rows[float], length: int, most: int, least: float
) -> list[float]:
    """How likely the first, the second … drafted token is accepted with all before it; descending.

    At most `most` numbers, none below `least`. `length` is that of the match before the first;
    every accepted token makes it longer.
    """
    found: list[float] = []
    chance, rate, known = 1.0, 0.0, -1
    for depth in range(most):
        which = length_class(length + depth)
        if which != known:
            rate, known = own.rate(which, priors[which]), which
        chance *= rate
        if chance < least:
            break
        found.append(chance)
    return found


def length_class(length: int) -> int:
    """The class of a match of `length` ≥ 2 tokens."""
    return min(length.bit_length() - 2, NUM_CLASSES - 1)
