"""DrainRate: how fast requests end, from which a refused client learns when to come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

NUM_ENDINGS = 64
# OpenAI's client follows a Retry-After of up to a minute, and makes up its own wait beyond that.
MAX_WAIT_S = 60.0


class DrainRate:
    """The rate of the last endings within one busy period. `clock` is `time.monotonic`'s."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy_since = clock()
        self._endings: deque[float] = deque(maxlen=NUM_ENDINGS)

    def note_busy(self) -> None:
        """The first request after none: what was before says nothing about now."""
        self._endings.clear()
        self._busy_since = self._clock()

    def note_end(self) -> None:
        """A request ended and gave its place up."""
        self._endings.append(self._clock())

    def seconds_until(self, count: int) -> float:
        """When `count` more will have ended, if it goes on like this: 1 to MAX_WAIT_S seconds.

        Before the first ending, one is assumed to be due now.
        """
        is_whole = len(self._endings) == NUM_ENDINGS
        begin = self._endings[0] if is_whole else self._busy_since
        num_endings = len(self._endings) - 1 if is_whole else max(1, len(self._endings))
        wait_s = count * (self._clock() - begin) / num_endings
        return min(MAX_WAIT_S, max(1.0, wait_s))
