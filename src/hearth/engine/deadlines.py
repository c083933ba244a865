"""Deadlines: which requests have run out of time. Looked at between two steps."""

from __future__ import annotations

import math
from collections.abc import Callable

from hearth.engine.sequence import Sequence


class Deadlines:
    """Sequences that have not ended and whose request has a deadline.

    `clock` is `time.monotonic`'s. A bound below all deadlines makes a look cost nothing until the
    first may have come; only then all are gone through.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: dict[str, Sequence] = {}
        self._earliest = math.inf

    def watch(self, sequence: Sequence) -> None:
        """From now on; a sequence without a deadline is left alone."""
        if deadline := sequence.request.deadline:
            self._watched[sequence.request_id] = sequence
            self._earliest = min(self._earliest, deadline)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._watched.pop(sequence.request_id, None)

    def expired(self) -> list[Sequence]:
        """Those whose time is over, by rank."""
        if self._earliest == math.inf or (now := self._clock()) < self._earliest:
            return []
        watched = self._watched.values()
        found = [sequence for sequence in watched if sequence.request.deadline <= now]
        later = (s.request.deadline for s in watched if s.request.deadline > now)
        self._earliest = min(later, default=math.inf)
        return sorted(found, key=lambda sequence: sequence.rank)
