"""What a first model leaves for the second: bytes by their place, and nothing behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hearth.core.config import WeightCacheConfig
from hearth.quant.sides import Lengths
from hearth.quant.spool import Spool


def test_what_was_not_written_behind_the_last_array_is_zero(tmp_path: Path) -> None:
    """Packed weights end at a whole page, arrays where they end."""
    spool = Spool(0, WeightCacheConfig(str(tmp_path)))
    try:
        spool.append(np.ones(5000, np.uint8))
        place = spool.append(np.full(100, 7, np.uint8))
        with spool.mapped(place, 4096) as mapped:
            assert mapped[:100] == bytes([7]) * 100
            assert mapped[100:] == bytes(3996)
    finally:
        spool.close()
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_asked_for_need_no_context() -> None:
    assert Lengths(64, 32, 64, 0).longest == 64
    assert Lengths(64, 32, 64, 1).longest == 96
