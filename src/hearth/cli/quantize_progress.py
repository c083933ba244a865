"""Progress of a quantization, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from hearth.core.units import format_duration

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_INTERVAL_S = 5.0


class QuantizeProgress:
    """A `quant.calibrated.run.Observer`; a context around what it observes."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total = self._done = 0.0
        self._begun = self._last_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(),  # what it is about stands in the line above: a terminal is narrow
                TaskProgressColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
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

    def begin(self, title: str, total: float) -> None:
        """See quant.calibrated.run.Observer."""
        self._title, self._total, self._done = title, total, 0.0
        self._begun = self._last_line = time.monotonic()
        self.note(title)
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=total)

    def advance(self, amount: float) -> None:
        """See quant.calibrated.run.Observer."""
        self._done += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif now - self._last_line >= LINE_INTERVAL_S and self._done < self._total:
            self._last_line = now
            left = (now - self._begun) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            self.note(f"{self._title}: {share:.0f} %, about {format_duration(left)} left")

    def note(self, text: str) -> None:
        """See quant.calibrated.run.Observer."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
