"""Measured speeds are those of the kernels: positive, of every precision, slower with more rows."""

from __future__ import annotations

import pytest

from hearth.engine import speeds
from hearth.engine.speeds import measure_speeds
from hearth.host.placement import Placement


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_LAYERS", {"int4": 2, "bfloat16": 1})
    monkeypatch.setattr(speeds, "_MOST_LAYERS", 2)
    monkeypatch.setattr(speeds, "_LEAST_S", 0.0)
    monkeypatch.setattr(speeds, "_LEAST_STEPS", 2)
    monkeypatch.setattr(speeds, "_MOST_STEPS", 2)


def test_every_precision_is_measured_at_every_number_of_rows() -> None:
    parts: list[str] = []
    seen = measure_speeds(Placement(2, "", (), ""), "auto", lambda what, *_: parts.append(what))
    assert parts == ["kernels of int4 weights", "kernels of bfloat16 weights"]
    assert [speed.precision for speed in seen.precisions] == ["int4", "bfloat16"]
    for speed in seen.precisions:
        assert [point.num_rows for point in speed.points] == list(speeds.ROWS)
        assert all(point.byte_s > 0 for point in speed.points)
        assert speed.byte_s(512) > 4 * speed.byte_s(1)
    assert seen.attend_flops_s > 0
    assert seen.kv_bytes_s > 0
