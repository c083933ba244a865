"""Calibration text: a file of any size, read here and there where it is large."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.errors import ConfigError
from hearth.quant.calibrated import text
from hearth.quant.calibrated.text import read_calibration


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
