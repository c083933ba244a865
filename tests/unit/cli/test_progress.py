"""What a pull and a quantization say on stderr while they go on."""

from __future__ import annotations

import sys

import pytest

from hearth.cli.pull_progress import PullProgress
from hearth.cli.quantize_progress import QuantizeProgress

MIB = 1 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; a test moves them."""
    now = [100.0]
    monkeypatch.setattr("hearth.cli.shown_progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with PullProgress() as pull:
        pull.begin("a model", 100 * MIB, 20 * MIB)
        clock[0] += 4
        pull.advance(10 * MIB)
        clock[0] += 4
        pull.advance(30 * MIB)
        pull.advance(MIB)
        pull.note("another source")
        clock[0] += 5
        pull.advance(-50 * MIB)  # a file begins anew
    assert capsys.readouterr().err.splitlines() == [
        "a model: 100 MiB, 20.0 MiB of them are here",
        "a model: 60.0 MiB of 100 MiB, 5.00 MiB/s",
        "another source",
        "a model: 11.0 MiB of 100 MiB, 0 B/s",
    ]
    with QuantizeProgress() as quantize:
        quantize.begin("layers", 10.0)
        clock[0] += 6
        quantize.advance(0.0)  # nothing is known of the time left
        quantize.advance(2.0)
        clock[0] += 6
        quantize.advance(8.0)  # done: what comes next is said there
    assert capsys.readouterr().err.splitlines() == ["layers", "layers: 20 %, about 24 s left"]


def test_a_terminal_has_a_bar_and_notes_above_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with PullProgress() as pull:
        for title in ("first", "second"):
            pull.begin(title, 10, 0)
            pull.advance(5)
            pull.note(f"[{title}]")
        bar = pull._bar
        assert bar is not None
        assert [(task.description, task.completed) for task in bar.tasks] == [("second", 5)]
    with QuantizeProgress() as quantize:
        quantize.begin("layers", 2.0)
        quantize.advance(1.0)
        bar = quantize._bar
        assert bar is not None
        assert bar.tasks[0].percentage == 50
    assert "[first]" in capsys.readouterr().err
