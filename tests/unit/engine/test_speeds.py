"""Measured speeds are those of the kernels: positive, of every precision, slower with more rows."""

from __future__ import annotations

import pytest

from hearth.engine import speeds
from hearth.engine.speeds import measure_speeds
from hearth.host.placement import Placement


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_LAYERS", {"int4": 2, "fp8": 1, "bfloat16": 1})
    monkeypatch.setattr(speeds, "_MOST_LAYERS", 2)
    monkeypatch.setattr(speeds, "_LEAST_S", 0.0)
    monkeypatch.setattr(speeds, "_LEAST_STEPS", 2)
    monkeypatch.setattr(speeds, "_MOST_STEPS", 2)


def test_every_precision_is_measured_at_every_number_of_rows() -> None:
    parts: list[str] = []
    seen = measure_speeds(Placement(2, "", (), ""), "auto", lambda what, *_: parts.append(what))
    assert parts[:2] == ["the kernels, 1 row a step", "the kernels, 2 rows a step"]
    assert len(parts) == len(speeds.ROWS)
    assert [speed.precision for speed in seen.precisions] == ["int4", "fp8", "bfloat16"]
    for speed in seen.precisions:
        assert [point.num_rows for point in speed.points] == list(speeds.ROWS)
        assert all(point.byte_s > 0 for point in speed.points)
        assert speed.byte_s(512) > 4 * speed.byte_s(1)
        samples = speed.first_row_s
        assert samples is not None
        assert samples.count == len(speeds.ROWS)
        assert 0 < samples.least <= samples.median <= samples.most
        assert speed.byte_s(1) == samples.median
    assert seen.attend_flops_s > 0
    assert seen.kv_bytes_s > 0


def test_precisions_take_turns_where_memory_holds_all_of_them_and_follow_each_other_elsewhere() -> (
    None
):
    layers = {"int4": 4, "bfloat16": 2}
    assert speeds._groups(layers, 16 << 30) == [["int4", "bfloat16"]]
    assert speeds._groups(layers, 1 << 30) == [["int4"], ["bfloat16"]]
