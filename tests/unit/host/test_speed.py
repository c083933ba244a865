"""What steps cost, and how long that takes at given speeds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.autoglm import write_autoglm

from hearth.host.cost import ExpertCost, LinearCost, ProgramCost, program_cost
from hearth.host.speed import (
    PrecisionSpeed,
    Samples,
    SpeedPoint,
    Speeds,
    decode_s,
    encode_s,
    linear_s,
    prefill_s,
)
from hearth.models.loader import load_model_spec

POINTS = (SpeedPoint(1, 1e-10), SpeedPoint(8, 2e-10), SpeedPoint(512, 50.4e-10))
SPEEDS = Speeds(
    (PrecisionSpeed("int4", POINTS), PrecisionSpeed("int8", (SpeedPoint(1, 1e-10),))),
    attend_flops_s=1e12,
    kv_bytes_s=1e10,
    step_s=1e-3,
    source="made up",
)
COST = ProgramCost((LinearCost("int4", 10**9, 10**8),), (), 10**6, 10**5, 10**5)


def test_a_speed_lies_on_lines_between_the_points_and_beyond_the_last() -> None:
    speed = SPEEDS.precisions[0]
    assert speed.byte_s(1) == 1e-10
    assert speed.byte_s(4.5) == pytest.approx(1.5e-10)
    assert speed.byte_s(512) == pytest.approx(50.4e-10)
    assert speed.byte_s(1016) == pytest.approx(98.8e-10)


@given(st.lists(st.floats(1, 5000), min_size=2))
def test_more_rows_never_take_less_time_where_the_points_do_not(rows: list[float]) -> None:
    speed = SPEEDS.precisions[0]
    times = [speed.byte_s(n) for n in sorted(rows)]
    assert all(a <= b + 1e-20 for a, b in pairwise(times))


def test_one_point_holds_for_any_number_of_rows() -> None:
    assert SPEEDS.precisions[1].byte_s(64) == 1e-10


def test_a_token_takes_the_weights_the_keys_behind_it_and_a_fixed_time() -> None:
    expected = 1.1e9 * 1e-10 + 1000 * 10**5 / 1e10 + 1e-3
    assert decode_s(COST, SPEEDS, 1, 1000).seconds == pytest.approx(expected)


def test_a_prompt_takes_its_steps_and_what_only_the_last_token_needs_once() -> None:
    pairs = 512 * 513 / 2 + 88 * 512 + 88 * 89 / 2
    row_88 = 2e-10 + (50.4e-10 - 2e-10) * 80 / 504
    expected = 10**9 * (50.4e-10 + row_88) + 10**8 * 1e-10 + 2 * 1e-3
    expected += (10**6 * pairs + 10**5 * 600) / 1e12
    assert prefill_s(COST, SPEEDS, 600, 0, 512).seconds == pytest.approx(expected)


def test_what_is_in_the_cache_is_looked_at_and_not_computed() -> None:
    whole = prefill_s(COST, SPEEDS, 2048, 0, 512).seconds
    rest = prefill_s(COST, SPEEDS, 2048, 1536, 512).seconds
    new = prefill_s(COST, SPEEDS, 512, 0, 512).seconds
    assert new < rest < whole


def test_a_precision_without_a_speed_is_named_and_left_out() -> None:
    cost = ProgramCost((LinearCost("float32", 10**9, 0), *COST.linears), (), 0, 0, 0)
    seen = linear_s(cost, SPEEDS, 1, 1)
    assert seen.missing == ("float32",)
    assert seen.seconds == linear_s(COST, SPEEDS, 1, 1).seconds


def test_experts_are_read_as_often_as_some_row_chooses_them() -> None:
    expert = ExpertCost("int8", num_layers=2, num_experts=8, top_k=2, expert_bytes=10**6)
    cost = ProgramCost((), (expert,), 0, 0, 0)
    assert expert.touched(1) == pytest.approx(2)
    assert 7.9 < expert.touched(64) <= 8
    assert linear_s(cost, SPEEDS, 1, 1).seconds == pytest.approx(2 * 2 * 10**6 * 1e-10)
    assert cost.read_bytes == 4 * 10**6


def test_an_image_is_looked_at_by_all_of_its_patches_or_by_windows() -> None:
    whole = encode_s(COST, SPEEDS, 4000).seconds
    windows = encode_s(COST, SPEEDS, 4000, window=64).seconds
    assert whole - windows == pytest.approx(1.1e6 * 4000 * (4000 - 64) / 1e12)


def test_the_costs_of_a_known_model_are_those_of_its_shapes(tmp_path: Path) -> None:
    cost = program_cost(load_model_spec(write_autoglm(tmp_path)).program)
    (linear,) = cost.linears
    head = 151552 * 4096
    body = 40 * (4096 * (4096 + 2 * 256) + 4096**2 + 3 * 4096 * 13696)
    last = 4096**2 + 3 * 4096 * 13696  # behind the keys and values of the last layer
    assert linear.precision == "bfloat16"
    assert linear.token_bytes == 2 * (body - last)
    assert linear.wanted_bytes == 2 * (head + last)
    assert cost.attend_flops == 39 * 4 * 32 * 128
    assert cost.kv_bytes == 40_960


def test_noise_never_makes_more_rows_than_were_measured_cheaper_than_the_last() -> None:
    speed = PrecisionSpeed("int4", (SpeedPoint(64, 4e-10), SpeedPoint(512, 3e-10)))
    assert speed.byte_s(10_000) == 3e-10


def test_the_rate_of_one_row_is_shown_with_its_range_where_it_is_wide() -> None:
    (point, *_) = POINTS
    for least, most, shown in ((0.95e-10, 1.02e-10, ""), (0.8e-10, 1.25e-10, " (8.0-12.5)")):
        speed = PrecisionSpeed("int4", (point,), Samples(least, 1e-10, most, 8))
        assert speed.describe() == f"int4 10.0 GB/s{shown}"
