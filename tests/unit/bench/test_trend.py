"""The slope that the mixed load prints, and what its margin is worth."""

from __future__ import annotations

import math
import random

import pytest
from benchmarks.trend import slope_of


def test_a_line_is_its_own_slope() -> None:
    found = slope_of([0, 1, 2, 5], [3, 5, 7, 13])
    assert found.per_unit == pytest.approx(2)
    assert found.margin == pytest.approx(0, abs=1e-6)


def test_two_samples_say_nothing() -> None:
    assert math.isnan(slope_of([0, 1], [1, 2]).per_unit)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_margin_holds_the_truth_nearly_always(correlation: float) -> None:
    choose = random.Random(5)
    x = [i / 100 for i in range(200)]
    num_held = 0
    for _ in range(200):
        noise, y = 0.0, []
        for value in x:
            noise = correlation * noise + choose.gauss(0, 1)
            y.append(3 * value + noise)
        found = slope_of(x, y)
        num_held += abs(found.per_unit - 3) < found.margin
    assert num_held >= 180
