"""Ctrl-C in a conversation at a terminal: it ends what is going on there, and is never lost.

Python runs a signal's handler between two of its own instructions. So a plain KeyboardInterrupt
- ends the program where it comes while another one, or an error, is being reported;
- is kept back where it comes inside `input()` before that waits for the next key: the prompt stays
  as it is until the user ends a line, and that line is lost in its place.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Final, Self

WAKE_S: Final = 0.1


class CtrlC:
    """SIGINT as a KeyboardInterrupt within `with ctrl_c:`, once each time, and nowhere else.

    One that comes outside is raised when the next such region is entered.
    """

    def __init__(self) -> None:
        self._is_expected = False
        self._has_come = False

    def install(self) -> None:
        """Takes SIGINT, also where it is ignored, and SIGALRM for as long as the process lives.

        A shell that starts a program in the background has it ignore SIGINT, and so do the programs
        started from it: Ctrl-C must stop an answer all the same.
        """
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGALRM, lambda *_: None)
        # Readline waits in select(), which no handler restarts; what it writes should be.
        signal.siginterrupt(signal.SIGALRM, "readline" not in sys.modules)

    def __enter__(self) -> Self:
        self._is_expected = True
        if self._has_come:
            self._is_expected = self._has_come = False
            raise KeyboardInterrupt
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_expected = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_expected:
            self._is_expected = False  # the next one must not disturb how this one is answered
            raise KeyboardInterrupt
        self._has_come = True


def read_line(prompt: str) -> str:
    """`input()` that hears a Ctrl-C within WAKE_S wherever it comes. Raises EOFError at the end.

    Needs `CtrlC.install`. The timer ends the wait for a key, upon which the handlers are run.
    """
    signal.setitimer(signal.ITIMER_REAL, WAKE_S, WAKE_S)
    try:
        return input(prompt)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
