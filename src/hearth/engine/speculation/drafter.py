"""Drafter: whom a step drafts for, and how many tokens; NgramDrafter chooses by expected gain.

A drafter changes how long an answer takes, never the answer: what it proposes is verified. So it
may depend on times and on company, which nothing else in the scheduler may.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Protocol, TypeAlias

from hearth.engine.sequence import Sequence
from hearth.engine.speculation.chances import AllGuesses, GuessRecord, reach
from hearth.engine.speculation.ngrams import NgramIndex
from hearth.engine.speculation.prices import RowPrices, count_class

RoomOf: TypeAlias = Callable[[Sequence], int]

# Of one sequence in one step. More pay only where nearly everything is accepted, and little then.
MAX_DRAFT = 16
# A step must promise this much more than one without drafts: a margin for the errors of both sides.
LEAST_GAIN = 1.05
# What drafts may lose, in decoded tokens: at most CREDIT, and CREDIT_A_TOKEN of all tokens.
CREDIT = 4.0
CREDIT_A_TOKEN = 0.005
# Looking for repetitions in vain may take this share of the time, or rests for some steps.
LOOKING_SHARE = 0.005
LONGEST_REST = 128


class Drafter(Protocol):
    """Proposes tokens for the next step of sequences that decode."""

    def is_resting(self) -> bool:
        """Whether this step is to go without it; asked once a step."""
        ...

    def draft(self, sequences: Rows[Sequence], most: int, room_of: RoomOf) -> dict[int, array[int]]:
        """Index of a sequence → its draft; at most `most` tokens together, `room_of` each."""
        ...

    def note_verified(self, num_drafted: int, num_accepted: int) -> None:
        """Of a draft so many tokens were accepted."""
        ...

    def note_step(self, sequences: Rows[Sequence], num_drafted: int, step_s: float) -> None:
        """A step that `draft` was asked for took so long, with so many drafted tokens in it."""
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

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._look_s = 0.0  # how long `draft` takes, about
        self._rest = 0  # steps that are to go without a look
        self._num_rested = 0  # steps that went without one since the last
        self._is_in_vain = False  # the last look found nothing that pays
        self._all_guesses = AllGuesses()
        self._prices = RowPrices()
        self._credit = CREDIT
        self._price = 0.0  # of a row of the last step that had drafts
        # The sequences of the last step, in its order; what has left is forgotten.
        self._texts: dict[Sequence, _Text] = {}

    def is_resting(self) -> bool:
        """See Drafter. Of a small model a step may be as short as a look at its texts is long."""
        if self._rest == 0:
            return False
        self._rest -= 1
        self._num_rested += 1
        return True

    def draft(self, sequences: Rows[Sequence], most: int, room_of: RoomOf) -> dict[int, array[int]]:
        """See Drafter. Nothing where no draft is expected to pay."""
        started = self._clock()
        drafts = self._draft(sequences, most, room_of)
        self._look_s += (self._clock() - started - self._look_s) / 8
        return drafts

    def _draft(
        self, sequences: Rows[Sequence], most: int, room_of: RoomOf
    ) -> dict[int, array[int]]:
        num_sequences = len(sequences)
        if sequences != list(self._texts):
            known = self._texts
            self._texts = {s: known.get(s) or _Text(self._all_guesses) for s in sequences}
            self._prices.change_company()
        num_tokens = num_sequences * (1 + self._num_rested)
        self._credit = min(CREDIT, self._credit + CREDIT_A_TOKEN * num_tokens)
        self._num_rested = 0
        texts = list(self._texts.values())
        for sequence, text in zip(sequences, texts, strict=True):
            text.ngrams.advance(sequence.tokens, text.note)
        matching = [index for index, text in enumerate(texts) if text.ngrams.length]
        self._is_in_vain = not matching or self._credit <= 0
        if self._is_in_vain or self._prices.wants_plain_step(num_sequences):
            return {}
        prices = self._prices.prices(num_sequences)
        least, priors = min(prices), self._all_guesses.rates()
        ranked: list[tuple[float, int]] = []
        for index in matching:
            text, room = texts[index], min(MAX_DRAFT, room_of(sequences[index]))
            chances = reach(text.guesses, priors, text.ngrams.length, room, least)
            ranked += [(-chance, index) for chance in chances]
        ranked.sort()
        most = min(most, self._prices.most_rows(num_sequences))
        counts = Counter(index for _, index in self._best(ranked[:most], prices, num_sequences))
        self._is_in_vain = not counts
        return {
            index: _guess(texts[index], sequences[index], count) for index, count in counts.items()
        }

    def note_verified(self, num_drafted: int, num_accepted: int) -> None:
        """See Drafter."""
        self._credit += num_accepted - self._price * num_drafted

    def note_step(self, sequences: Rows[Sequence], num_drafted: int, step_s: float) -> None:
        """See Drafter."""
        if sequences == list(self._texts):
            self._prices.note(len(sequences), num_drafted, step_s)
        if self._is_in_vain:
            self._rest = min(LONGEST_REST, int(self._look_s / max(LOOKING_SHARE * step_s, 1e-9)))

    def _best(
        self, ranked: Rows[tuple[float, int]], prices: Rows[float], num_sequences: int
    ) -> Rows[tuple[float, int]]:
        """So many of the likeliest tokens that the tokens a second promise to be most.

        `ranked`: (−chance, index of its sequence), the likeliest first. As the chances of a
        sequence descend, its tokens come in order.
        """
        best_gain, best_count, expected = LEAST_GAIN, 0, 0.0
        for count, (chance, _) in enumerate(ranked, 1):
            expected -= chance
            price = prices[count_class(count)]
            gain = (num_sequences + expected) / (num_sequences + price * count)
            if gain > best_gain:
                best_gain, best_count, self._price = gain, count, price
        return ranked[:best_count]


def _guess(text: _Text, sequence: Sequence, most: int) -> array[int]:
    """Up to the first token that would end the answer: none is wanted after it."""
    draft = text.ngrams.guess(sequence.tokens, most)
    if sequence.stop_token_ids.isdisjoint(draft):
        return draft
    end = next(i for i, token in enumerate(draft) if token in sequence.stop_token_ids)
    return draft[: end + 1]
