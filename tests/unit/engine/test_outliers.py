"""How far a channel stands out among those of its group."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hearth.engine.outliers import STANDS_OUT, largest_ratio

RANDOM = np.random.default_rng(3)


def rows(num_rows: int = 11, width: int = 256) -> NDArray[np.float32]:
    return RANDOM.uniform(0.5, 1.5, (num_rows, width)).astype(np.float32)


def test_a_channel_counts_by_the_mean_of_the_others_of_its_group() -> None:
    x = rows()
    x[:, 130] = -100
    assert largest_ratio(x, 128) == pytest.approx(100, rel=0.1)


def test_large_values_that_move_from_channel_to_channel_are_no_outliers() -> None:
    x = rows()
    for row, place in enumerate(RANDOM.permutation(128)[: len(x)]):
        x[row, place] = 200
    assert largest_ratio(x, 128) < STANDS_OUT


@pytest.mark.parametrize(("count", "is_found"), [(6, True), (5, False)])
def test_most_rows_must_have_it(count: int, is_found: bool) -> None:
    x = rows()
    x[:count, 130] = 200
    assert (largest_ratio(x, 128) >= STANDS_OUT) == is_found


def test_others_that_were_rounded_to_zero_give_a_finite_number() -> None:
    x = np.zeros((11, 128), np.float32)
    x[:, 4] = 1
    assert STANDS_OUT < largest_ratio(x, 128) < 1000


def test_a_group_of_zeros_and_a_partial_group_count_as_they_are() -> None:
    assert largest_ratio(np.zeros((3, 128), np.float32), 64) == 0
    x = rows(width=200)
    x[:, 199] = 90  # 71 neighbours: what pads the group is none
    assert largest_ratio(x, 128) == pytest.approx(90, rel=0.1)
    alone = rows(width=129)
    assert largest_ratio(alone, 128) < 3  # the last one has no neighbour to harm


def test_rows_that_are_not_finite_are_for_others_to_tell() -> None:
    assert largest_ratio(np.full((3, 64), np.nan, np.float32), 32) == 0
    assert largest_ratio(np.zeros((0, 64), np.float32), 32) == 0
