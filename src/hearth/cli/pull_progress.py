"""Progress of a pull, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hearth.cli.shown_progress import ShownProgress
from hearth.core.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class PullProgress(ShownProgress):
    """A hub.Observer; a context around what it observes."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def begin(self, title: str, total_bytes: int, done_bytes: int) -> None:
        """See hub.Observer."""
        with self._lock:
            here = f", {format_bytes(done_bytes)} of them are here" if done_bytes else ""
            said = f"{title}: {format_bytes(total_bytes)}{here}"
            self._start(title, total_bytes, done_bytes, said)

    def advance(self, num_bytes: int) -> None:
        """See hub.Observer."""
        with self._lock:
            self._move(num_bytes)

    def note(self, text: str) -> None:
        """See hub.Observer."""
        with self._lock:
            self._say(text)

    def _columns(self) -> list[ProgressColumn]:
        from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

        return [DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]

    def _line(self, spent_s: float) -> str | None:
        speed = (self._done - self._done_before) / spent_s
        done, total = format_bytes(self._done), format_bytes(self._total)
        return f"{done} of {total}, {format_bytes(max(0, speed))}/s"
