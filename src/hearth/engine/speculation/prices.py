"""RowPrices: what a drafted row costs, in decoded tokens, measured while serving.

The price of K drafted rows beside S decoding sequences is

    price = (time(S + K) / time(S) − 1) · S / K

the row's share of a step's time, relative to what a sequence's token costs in a step without
drafts. Where reading the weights bounds a step it is near 0, where arithmetic does it is near 1;
drafts pay where a larger share of them is accepted than the price. Being a ratio it does not change
with the context's length as times do.

Times are compared within one company of sequences only: a step with drafts with the median of the
last ones without. A noisy machine is met by least squares over many steps, in which a step counts
by the square of K / S, with a prior that old observations fade back to; a step that took much
longer than expected was disturbed and counts as if it had taken somewhat longer.
"""

from __future__ import annotations

from collections import deque

# In a step of a CPU the weights take as long as the arithmetic of some 12 rows. (Measured: 8 to 16
# for 1.5 billion parameters in INT4 and bfloat16 on two cores with AVX-512.)
FREE_ROWS = 12.0
_PRIOR_WEIGHT = 0.5
_FADING = 0.99  # of what was seen, at each further step with as many sequences
_NUM_PLAIN = 5
_FIRST_ROWS = 3
_LEAST_PRICE = 0.01
_MOST_SURPRISE, _LEAST_SURPRISE = 2.0, 0.25  # times what was expected, and in plain steps
NUM_CLASSES = 8
# Steps with drafts between two plain ones, while a price is little known and later.
_PLAIN_EVERY_FEW, _PLAIN_EVERY = 6, 48
_LEARNT, _WELL_KNOWN = 4, 12


class RowPrices:
    """Prices by the sequences of a step and by its drafted rows, in powers of two."""

    def __init__(self) -> None:
        self._products = [[0.0] * NUM_CLASSES for _ in range(NUM_CLASSES)]
        self._squares = [[0.0] * NUM_CLASSES for _ in range(NUM_CLASSES)]
        self._num_seen = [0] * NUM_CLASSES
        self._plain_s: deque[float] = deque(maxlen=_NUM_PLAIN)
        self._num_since_plain = 0

    def prices(self, num_sequences: int) -> list[float]:
        """The estimates by `count_class` of the drafted rows, above 0."""
        row = count_class(num_sequences)
        prior = num_sequences / (FREE_ROWS + num_sequences)
        found = [
            max(_LEAST_PRICE, (product + _PRIOR_WEIGHT * prior) / (square + _PRIOR_WEIGHT))
            for product, square in zip(self._products[row], self._squares[row], strict=True)
        ]
        seen = [which for which, square in enumerate(self._squares[row]) if square]
        if seen:  # what was not seen is like what was, and is found out
            for which in range(NUM_CLASSES):
                found[which] = found[min(seen, key=lambda one: abs(one - which))]
        return found

    def most_rows(self, num_sequences: int) -> int:
        """Drafted rows that may be tried: a few, then four times as many as were measured."""
        squares = self._squares[count_class(num_sequences)]
        largest = max((which for which, square in enumerate(squares) if square), default=-1)
        return (8 << largest) - 1 if largest >= 0 else _FIRST_ROWS

    def wants_plain_step(self, num_sequences: int) -> bool:
        """Whether the next step should go without drafts, for others to be compared with it."""
        if self._num_seen[count_class(num_sequences)] >= _WELL_KNOWN:
            return self._num_since_plain >= _PLAIN_EVERY
        return not self._plain_s or self._num_since_plain >= _PLAIN_EVERY_FEW

    def change_company(self) -> None:
        """Other sequences from now on: the times before say nothing about those to come."""
        self._plain_s.clear()

    def note(self, num_sequences: int, num_drafted: int, step_s: float) -> None:
        """A step of decoding sequences took so long."""
        row = count_class(num_sequences)
        products, squares = self._products[row], self._squares[row]
        for index in range(NUM_CLASSES):
            products[index] *= _FADING
            squares[index] *= _FADING
        if num_drafted == 0:
            self._plain_s.append(step_s)
            self._num_since_plain = 0
            return
        self._num_since_plain += 1
        plain_s = sorted(self._plain_s)[len(self._plain_s) // 2] if self._plain_s else 0.0
        if plain_s <= 0:
            return
        share = num_drafted / num_sequences
        expected = self.prices(num_sequences)[count_class(num_drafted)] * share
        # Never below 0: that would be a disturbed plain step, and a price that is too low loses.
        excess = max(0.0, step_s / plain_s - 1)
        if self._num_seen[row] >= _LEARNT:
            excess = min(excess, _MOST_SURPRISE * expected + _LEAST_SURPRISE)
        self._num_seen[row] += 1
        which = count_class(num_drafted)
        products[which] += share * excess
        squares[which] += share * share


def count_class(count: int) -> int:
    """0 for 1, 1 for 2 and 3, 2 for 4 to 7, and so on in powers of two."""
    return min(count.bit_length() - 1, NUM_CLASSES - 1)
