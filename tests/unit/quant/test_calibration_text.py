"""Calibration text: a file of any size, read here and there where it is large."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tools.calibration_text import runs_of, without
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.errors import ConfigError
from hearth.quant.builtin_texts import Purpose, text_path
from hearth.quant.calibrated import text
from hearth.quant.calibrated.text import read_calibration

PURPOSES: tuple[Purpose, ...] = ("calibrating", "measuring")


def numbered_lines(count: int) -> str:
    return "".join(f"{number:06d} die Wärme 火 and what is told of it\n" for number in range(count))


def test_a_large_text_is_read_in_places_over_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.txt"
    path.write_text(numbered_lines(20_000), encoding="utf-8")
    monkeypatch.setattr(text, "MOST_BYTES", 64 << 10)
    found = text._read(path)
    assert len(found.encode()) <= 64 << 10
    numbers = [int(line[:6]) for line in found.splitlines()]
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 50
    assert numbers[-1] == 19_999
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 400
    calibration = read_calibration(str(path), TEXT_MODEL_DIR, 4, 32)
    assert calibration.tokens.shape == (4, 32)


def test_a_small_text_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_text("one line\nand one without an end", encoding="utf-8")
    assert text._read(path) == "one line\nand one without an end"


def test_wrong_bytes_in_a_large_text_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.txt"
    path.write_bytes(numbered_lines(5000).encode().replace(b"W", b"\xff"))
    monkeypatch.setattr(text, "MOST_BYTES", 16 << 10)
    with pytest.raises(ConfigError, match="UTF-8"):
        read_calibration(str(path), TEXT_MODEL_DIR, 4, 32)


def test_what_is_calibrated_with_is_not_measured_on() -> None:
    """No run of letters and digits is in both of hearth's own texts, whatever its markup is."""
    calibrating, measuring = (text_path("builtin", p).read_text("utf-8") for p in PURPOSES)
    runs = [runs_of(calibrating), runs_of(measuring)]
    assert not runs[0] & runs[1]
    assert min(map(len, runs)) > 40_000


def test_lines_that_are_measured_on_are_left_out_whatever_their_markup() -> None:
    measured = "It streams chat answers with continuous batching over a paged KV cache.\n短"
    lines = (
        "* **It streams** [chat](x.md)",  # too little to be the same
        "| `streams chat answers`, with continuous batching over a paged KV cache |",
        "短",
        "Something else that is long enough to be compared with it.",
    )
    assert without("\n".join(lines), measured) == "\n".join((lines[0], *lines[2:]))


def test_a_user_s_text_is_no_builtin_one(tmp_path: Path) -> None:
    for purpose in PURPOSES:
        assert text_path(str(tmp_path / "builtin"), purpose) == tmp_path / "builtin"
        assert text_path("builtin", purpose).is_file()
