"""Progress of loading, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from hearth.core.units import format_bytes

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from hearth.engine.messages import Progress

LINE_INTERVAL_S = 5.0


class LoadProgress:
    """A context around the loading; `update` takes the engine's reports."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

            columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(True))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
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

    def update(self, report: Progress) -> None:
        """Shows how far a phase is."""
        if self._bar is not None:
            if report.phase not in self._tasks:
                self._tasks[report.phase] = self._bar.add_task(report.phase, total=report.total)
            self._bar.update(self._tasks[report.phase], completed=report.done)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            done, total = format_bytes(report.done), format_bytes(report.total)
            print(f"loading {report.phase}: {done} of {total}", file=sys.stderr, flush=True)
