"""Progress of a quantization, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hearth.cli.shown_progress import ShownProgress
from hearth.core.units import format_duration

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class QuantizeProgress(ShownProgress):
    """A `quant.calibrated.run.Observer`; a context around what it observes."""

    def begin(self, title: str, total: float) -> None:
        """See quant.calibrated.run.Observer."""
        self._start(title, total, 0.0, title)

    def advance(self, amount: float) -> None:
        """See quant.calibrated.run.Observer."""
        self._move(amount)

    def note(self, text: str) -> None:
        """See quant.calibrated.run.Observer."""
        self._say(text)

    def _columns(self) -> list[ProgressColumn]:
        from rich.progress import TaskProgressColumn, TimeRemainingColumn

        return [TaskProgressColumn(), TimeRemainingColumn(elapsed_when_finished=True)]

    def _line(self, spent_s: float) -> str | None:
        if not 0 < self._done < self._total:
            return None
        left = spent_s * (self._total - self._done) / self._done
        return f"{100 * self._done / self._total:.0f} %, about {format_duration(left)} left"
