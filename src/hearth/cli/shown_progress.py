"""What progress of any kind has in common, on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

LINE_INTERVAL_S = 5.0


class ShownProgress(ABC):
    """A context around what is shown. It takes no lock: who has several threads does."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._total = self._done = self._done_before = 0.0
        self._begun = self._last_line = 0.0

    @abstractmethod
    def _columns(self) -> list[ProgressColumn]:
        """What a terminal's bar has behind itself; Rich is imported here and no earlier."""

    @abstractmethod
    def _line(self, spent_s: float) -> str | None:
        """What a log says now, behind the title; None: nothing."""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress

            # What it is about stands in the line above: a terminal is narrow.
            console = Console(stderr=True)
            self._bar = Progress(BarColumn(), *self._columns(), console=console, transient=True)
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

    def _start(self, title: str, total: float, done: float, said: str) -> None:
        """A phase begins; `said` is its line."""
        self._title, self._total, self._done, self._done_before = title, total, done, done
        self._begun = self._last_line = time.monotonic()
        self._say(said)
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=total)
            self._bar.update(self._task, completed=done)

    def _move(self, amount: float) -> None:
        self._done += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
            return
        is_time = now - self._last_line >= LINE_INTERVAL_S
        if is_time and (line := self._line(now - self._begun)) is not None:
            self._last_line = now
            self._say(f"{self._title}: {line}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
