"""`hearth demo phone` before any server: its flags, its errors, what it shows of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.demo_phone.phones import PerfectAgent

from hearth.cli.demo import _scenery, _Shown, _size
from hearth.core.errors import ConfigError
from hearth.demo_phone.session import run_task


@pytest.mark.parametrize("text", ["1080x2400", "1080×2400", "720X1600"])
def test_a_resolution_is_width_and_height(text: str) -> None:
    width, height = _size(text)
    assert width < height


@pytest.mark.parametrize("text", ["", "1080", "2400x1080", "10x20", "9000x9999", "-1x2", "axb"])
def test_a_wrong_resolution_is_an_error_that_says_what_is_permitted(text: str) -> None:
    with pytest.raises(ConfigError, match="permitted"):
        _size(text)


def test_a_seed_gives_the_same_scenery(capsys: pytest.CaptureFixture[str]) -> None:
    assert _scenery(None, "zh", (1080, 2400), 7) == _scenery(None, "zh", (1080, 2400), 7)
    assert "--seed 7" in capsys.readouterr().out


def test_a_step_is_a_line_a_picture_and_a_drawing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenery = _scenery("Open Camera", "en", (216, 480), 3)
    agent = PerfectAgent(scenery.task, scenery.device)
    shown = _Shown(tmp_path, is_live=True)
    steps = list(run_task(scenery.device, scenery.wording, agent))
    for seen in steps:
        shown.show(seen)
    text = capsys.readouterr().out
    assert "▀" in text
    assert 'finish(message="Camera is open")' in text
    assert "<think>" not in text
    names = [f"{number + 1:02d}.png" for number in range(len(steps))]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
