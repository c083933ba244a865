"""Progress of a pull, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Self

from hearth.core.units import format_bytes

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_INTERVAL_S = 5.0


class PullProgress:
    """A hub.Observer; a context around what it observes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total = self._done = self._done_before = 0
        self._begun = self._last_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                BarColumn(),  # what it is about stands in the line above: a terminal is narrow
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, title: str, total_bytes: int, done_bytes: int) -> None:
        """See hub.Observer."""
        with self._lock:
            self._title, self._total = title, total_bytes
            self._done = self._done_before = done_bytes
            self._begun = self._last_line = time.monotonic()
            here = f", {format_bytes(done_bytes)} of them are here" if done_bytes else ""
            self._say(f"{title}: {format_bytes(total_bytes)}{here}")
            if self._bar is not None:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(title, total=total_bytes, completed=done_bytes)

    def advance(self, num_bytes: int) -> None:
        """See hub.Observer."""
        with self._lock:
            self._done += num_bytes
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done)
            elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
                self._last_line = time.monotonic()
                speed = (self._done - self._done_before) / (self._last_line - self._begun)
                done, total = format_bytes(self._done), format_bytes(self._total)
                self._say(f"{self._title}: {done} of {total}, {format_bytes(max(0, speed))}/s")

    def note(self, text: str) -> None:
        """See hub.Observer."""
        with self._lock:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
