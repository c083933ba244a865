"""Drafter: whom a step drafts for, and how many tokens; NgramDrafter chooses by expected gain.

A drafter changes how long an answer takes, never the answer: what it proposes is verified. So it
may depend on times and on company, which nothing else in the scheduler may.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Protocol, TypeAlias

from hearth.engine.sequence import Sequence
from hearth.engine.speculation.chances import AllGuesses, GuessRecord, reach
from hearth.engine.speculation.ngrams import NgramIndex
from hearth.engine.speculation.prices import RowPrices, count_class

RoomOf: TypeAlias = Callable[[Sequence], int]

# Of one sequence in one step. More pay only where nearly everything is accepted, and little then.
MAX_DRAFT = 16
# A step must promise this much more than one without drafts; it covers what is not in the price.
LEAST_GAIN = 1.02
# What drafts may lose, in decoded tokens: at most CREDIT, and CREDIT_A_TOKEN of all tokens.
CREDIT = 4.0
CREDIT_A_TOKEN = 0.005


class Drafter(Protocol):
    """Proposes tokens for the next step of sequences that decode."""

    def draft(self, sequences: Rows[Sequence], most: int, room_of: RoomOf) -> dict[int, array[int]]:
        """Index of a sequence → its draft; at most `most` tokens together, `room_of` each."""
        ...

    def note_verified(self, num_drafted: int, num_accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        ...

    def note_step(self, sequences: Rows[Sequence], num_drafted: int, step_s: float) -> None:
        """A step of decoding sequences took so long, with so many drafted tokens among its rows."""
        ...


class _Text:
    """What is known of one sequence's text."""

    __slots__ = ("_all", "guesses", "ngrams")

    def __init__(self, all_guesses: AllGuesses) -> None:
        self.ngrams = NgramIndex()
        self.guesses = GuessRecord()
        self._all = all_guesses

    def note(self, length: int, is_hit: bool) -> None:
        """A guess was compared with what came."""
        self.guesses.note(length, is_hit)
        self._all.note(length, is_hit)


class NgramDrafter:
    """Drafts what followed the same tokens earlier in the same text (prompt lookup)."""

    def __init__(self) -> None:
        self._all_guesses = AllGuesses()
        self._prices = RowPrices()
        self._credit = CREDIT
        self._price = 0.0  # of a row of the last step that had drafts
        # The sequences of the last step, in its order; what has left is forgotten.
        self._texts: dict[Sequence, _Text] = {}

    def draft(self, sequences: Rows[Sequence], most: int, room_of: RoomOf) -> dict[int, array[int]]:
        """See Drafter. Nothing where no draft is expected to pay."""
        num_sequences = len(sequences)
        if sequences != list(self._texts):
            known = self._texts
            self._texts = {s: known.get(s) or _Text(self._all_guesses) for s in sequences}
            self._prices.change_company()
        self._credit = min(CREDIT, self._credit + CREDIT_A_TOKEN * num_sequences)
        prices = self._prices.prices(num_sequences)
        reaches = self._reaches(room_of, min(prices))
        if not reaches or self._credit <= 0 or self._prices.wants_plain_step(num_sequences):
            return {}
        most = min(most, self._prices.most_rows(num_sequences))
        counts = self._choose(reaches, prices, num_sequences, most)
        texts = list(self._texts.values())
        return {
            index: _until_stop(texts[index].ngrams.guess(sequence.tokens, count), sequence)
            for index, count in counts.items()
            for sequence in (sequences[index],)
        }

    def note_verified(self, num_drafted: int, num_accepted: int) -> None:
        """See Drafter."""
        self._credit += num_accepted - self._price * num_drafted

    def note_step(self, sequences: Rows[Sequence], num_drafted: int, step_s: float) -> None:
        """See Drafter."""
        if sequences == list(self._texts):
            self._prices.note(len(sequences), num_drafted, step_s)

    def _reaches(self, room_of: RoomOf, least: float) -> dict[int, list[float]]:
        """How likely each token of a draft is accepted, for each sequence that has a guess."""
        priors = self._all_guesses.rates()
        found: dict[int, list[float]] = {}
        for index, (sequence, text) in enumerate(self._texts.items()):
            ngrams = text.ngrams
            ngrams.advance(sequence.tokens, text.note)
            if ngrams.length:
                most = min(MAX_DRAFT, room_of(sequence))
                chances = reach(text.guesses, priors, ngrams.length, most, least)
                if chances:
                    found[index] = chances
        return found

    def _choose(
        self,
        reaches: Mapping[int, Rows[float]],
        prices: Rows[float],
        num_sequences: int,
        most: int,
    ) -> Counter[int]:
        """How many tokens to draft for each, so that the tokens a second promise to be most.

        The likeliest first: since the chances of a sequence descend, its tokens come in order.
        """
        ranked = sorted(
            ((-chance, index) for index, chances in reaches.items() for chance in chances)
        )[:most]
        best_gain, best_count, expected = LEAST_GAIN, 0, 0.0
        for count, (chance, _) in enumerate(ranked, 1):
            expected -= chance
            price = prices[count_class(count)]
            gain = (num_sequences + expected) / (num_sequences + price * count)
            if gain > best_gain:
                best_gain, best_count, self._price = gain, count, price
        return Counter(index for _, index in ranked[:best_count])


def _until_stop(draft: array[int], sequence: Sequence) -> array[int]:
    """Up to the first token that would end the answer: none is wanted after it."""
    if sequence.stop_token_ids.isdisjoint(draft):
        return draft
    end = next(i for i, token in enumerate(draft) if token in sequence.stop_token_ids)
    return draft[: end + 1]
