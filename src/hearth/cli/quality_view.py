"""What `hearth quality` shows: progress on stderr, a table or JSON on stdout, a plot in a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from hearth.bench.panels import Panel, figure
from hearth.core.errors import ConfigError
from hearth.core.units import format_bytes, format_count
from hearth.quant.quality import Quality
from hearth.quant.report import as_json, rows_of, storage_name, store_quality, warnings_of

_LINE_S = 5.0  # between two lines of a log
_REDRAW_S = 0.2
_NAME_WIDTH, _VALUE_WIDTH = 16, 24


class QualityProgress:
    """One line that is written over on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last = self._begin = time.monotonic()
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wipe()

    def note(self, text: str) -> None:
        """What comes next."""
        self._wipe()
        print(text, file=sys.stderr, flush=True)
        self._begin = self._last = time.monotonic()

    def advance(self, what: str, done: int, total: int) -> None:
        """How far it is, and what is left of it at the speed so far."""
        now = time.monotonic()
        if now - self._last < (_REDRAW_S if self._is_terminal else _LINE_S):
            return
        self._last = now
        form = format_bytes if what == "weights" else format_count
        left = (now - self._begin) * (total - done) / done if 0 < done <= total else 0.0
        line = f"  {what}: {form(done)} of {form(total)}, {left:.0f} s left"
        if self._is_terminal:
            self._is_drawn = True
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _wipe(self) -> None:
        if self._is_drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._is_drawn = False


def write_json(quality: Quality) -> None:
    """To stdout."""
    print(json.dumps(as_json(quality), ensure_ascii=False, indent=2))


def write_table(quality: Quality) -> None:
    """To stdout; what a reader must know of it, too."""
    text = quality.text
    print(f"MODEL: {quality.model.path} ({storage_name(quality.model)})")
    if quality.reference is not None:
        print(f"reference: {quality.reference.path} ({storage_name(quality.reference)})")
    print(
        f"text: {text.name}, {format_count(quality.num_tokens)} tokens in "
        f"{format_count(quality.num_sequences)} sequences of {format_count(quality.context)}; "
        f"{quality.executor}; {quality.seconds:.1f} s\n"
    )
    if quality.one_by_one:
        print(f"  the models ran one after the other: {quality.one_by_one}\n")
    for row in rows_of(quality):
        line = f"  {row.name:<{_NAME_WIDTH}}{row.value:<{_VALUE_WIDTH}}{row.meaning}"
        print(line.rstrip())
    for warning in warnings_of(quality):
        print(f"  warning: {warning}")


def write_plot(quality: Quality, path: Path) -> None:
    """Curves of the divergence and of the layers. Raises ConfigError where it cannot be written."""
    title = f"{quality.model.path.resolve().name}: {storage_name(quality.model)}"
    try:
        path.write_text(figure(title, _panels(quality)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    print(f"plot: {path}", file=sys.stderr)


def store(quality: Quality) -> None:
    """Keeps the short report where the server looks for it. Raises ConfigError."""
    print(f"stored: {store_quality(quality)}", file=sys.stderr)


def _panels(quality: Quality) -> list[Panel]:
    panels = []
    if quality.divergence is not None:
        marks = [(99.0, "99 %"), (99.9, "")]
        points = [(100 * share, value) for share, value in quality.curve]
        panels.append(Panel("KL divergence by share of tokens (nats)", "%", points, marks))
        tail = [(share, value) for share, value in points if share <= 99]
        panels.append(Panel("The same without the last 1 %", "%", tail))
    if quality.layers is not None:
        own = [(float(one.layer), 100 * one.own) for one in quality.layers.layers]
        added = [(float(one.layer), 100 * one.added_up) for one in quality.layers.layers]
        panels.append(Panel("Error of each layer by itself (% of its output)", "layer", own))
        panels.append(Panel("Error behind each layer, added up (%)", "layer", added))
    return panels
