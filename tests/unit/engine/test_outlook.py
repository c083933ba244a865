"""What is said of a model before it is there: sizes of a known one, verdicts, times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.autoglm import write_autoglm

from hearth.core.config import EngineConfig, ImagesConfig, ModelConfig
from hearth.core.units import GIB
from hearth.engine.executor import BackendChoice
from hearth.engine.outlook import (
    Load,
    Outlook,
    Site,
    costs_of,
    expected_speed,
    outlooks,
    spec_of,
)
from hearth.engine.phone_plan import (
    ANSWER_TOKENS,
    MESSAGE_TOKENS,
    _screenshot,
    _StepTimes,
    phone_steps,
)
from hearth.host.memory import HostMemory, MemoryFact
from hearth.host.speed import PrecisionSpeed, Samples, SpeedPoint, Speeds

BACKEND = BackendChoice("cpu", "a test")
SPEEDS = Speeds(
    tuple(
        PrecisionSpeed(name, (SpeedPoint(1, 2e-11), SpeedPoint(512, byte_s)))
        for name, byte_s in (("int4", 1.3e-9), ("int8", 0.65e-9), ("bfloat16", 1.0e-9))
    ),
    attend_flops_s=0.66e12,
    kv_bytes_s=4e10,
    step_s=1e-4,
    source="a test",
)


def memory(gib: float) -> HostMemory:
    return HostMemory((MemoryFact(round(gib * GIB), "a test"),))


def of(tmp_path: Path, gib: float, load: Load, speeds: Speeds | None = None) -> dict[str, Outlook]:
    config = EngineConfig(ModelConfig(str(write_autoglm(tmp_path))))
    site = Site(BACKEND, 2, memory(gib), speeds)
    return {outlook.scheme: outlook for outlook in outlooks(config, site, load)}


def weights(outlook: Outlook) -> float:
    return next(i.num_bytes for i in outlook.items if i.name == "weights") / GIB


def test_the_sizes_of_autoglm_phone_9b_are_the_published_ones(tmp_path: Path) -> None:
    seen = of(tmp_path, 64, Load(25_480, 1, 1024))
    assert weights(seen["none"]) == pytest.approx(19.17, abs=0.02)
    # Text in codes of 4 bits with bfloat16 scales, head, embedding and encoder in 8 bits.
    assert weights(seen["int4"]) == pytest.approx(5.94, abs=0.02)
    assert weights(seen["int8"]) == pytest.approx(9.74, abs=0.02)
    assert {o.kv_bytes for o in seen.values()} == {-(-25_480 // 32) * 32 * 40_960}


def test_what_does_not_fit_lacks_what_is_missing(tmp_path: Path) -> None:
    seen = of(tmp_path, 8, Load(8192, 1, 1024))
    assert seen["none"].verdict.startswith("lacks 13.")
    assert not seen["none"].fits
    assert seen["none"].longest_context == 0
    assert seen["int4"].fits


def test_a_cache_beyond_its_share_has_to_be_asked_for(tmp_path: Path) -> None:
    seen = of(tmp_path, 8.6, Load(25_480, 1, 1024))["int4"]
    assert seen.fits
    assert seen.verdict == f"fits with --kv-cache-memory-bytes {seen.kv_bytes}"
    assert 0 < seen.longest_context < 25_480
    assert seen.most_sequences == 1


def test_the_longest_context_fits_and_one_more_block_does_not(tmp_path: Path) -> None:
    longest = of(tmp_path, 8.3, Load(1024, 1, 1024))["int4"].longest_context
    again = of(tmp_path, 8.3, Load(longest, 1, 1024))["int4"]
    assert again.verdict == "fits"
    more = of(tmp_path, 8.3, Load(longest + 32, 1, 1024))["int4"]
    assert more.verdict.startswith("fits with --kv-cache-memory-bytes")


def test_without_speeds_no_times_are_made_up(tmp_path: Path) -> None:
    assert all(o.times is None for o in of(tmp_path, 64, Load(1024, 1, 1024)).values())


def test_times_are_those_of_the_bytes_and_operations(tmp_path: Path) -> None:
    times = of(tmp_path, 64, Load(2048, 4, 1024), SPEEDS)["int4"].times
    assert times is not None
    assert times.token_s == pytest.approx(5.23e9 * 2e-11, rel=0.1)
    assert 2.5 / times.token_s < times.tokens_s < 4 / times.token_s
    assert times.first_token_s == pytest.approx(2 * 4.6e9 * 1.3e-9, rel=0.1)
    assert times.image_s is not None
    assert times.missing == ()


def test_a_precision_that_was_not_measured_gives_no_speed(tmp_path: Path) -> None:
    model = ModelConfig(str(write_autoglm(tmp_path)), quantize="int4")
    loaded = spec_of(BACKEND, EngineConfig(model), "int4")
    known = expected_speed(loaded, EngineConfig(model), SPEEDS)
    assert known is not None
    assert known.startswith("10.2 tokens/s, a prompt of 1,024")
    less = replace(SPEEDS, precisions=SPEEDS.precisions[1:])
    assert expected_speed(loaded, EngineConfig(model), less) is None


def test_a_phone_agents_later_step_costs_its_screenshot_and_fewer_pixels_less(
    tmp_path: Path,
) -> None:
    config = EngineConfig(ModelConfig(str(write_autoglm(tmp_path))))
    steps = phone_steps(BACKEND, config, SPEEDS)
    tokens = {step.max_pixels: step.image_tokens for step in steps}
    assert (tokens[9_633_792], tokens[5_000_000]) == (3354, 3108)
    for scheme in ("none", "int8", "int4"):
        own = [step for step in steps if step.scheme == scheme]
        assert [s.later_s for s in own] == sorted((s.later_s for s in own), reverse=True)
        assert all(step.later_s < step.first_s for step in own)


def test_pixels_that_were_asked_for_are_the_only_ones(tmp_path: Path) -> None:
    model = ModelConfig(str(write_autoglm(tmp_path)))
    config = EngineConfig(model, images=ImagesConfig(max_pixels=1_250_000))
    assert {step.max_pixels for step in phone_steps(BACKEND, config, SPEEDS)} == {1_250_000}


def test_a_prediction_is_a_range_where_memory_varied_while_it_was_measured(tmp_path: Path) -> None:
    def varied(least: float, most: float) -> Speeds:
        samples = Samples(least * 2e-11, 2e-11, most * 2e-11, 8)
        return replace(
            SPEEDS, precisions=tuple(replace(p, first_row_s=samples) for p in SPEEDS.precisions)
        )

    model = ModelConfig(str(write_autoglm(tmp_path)), quantize="int4")
    loaded = spec_of(BACKEND, EngineConfig(model), "int4")
    wide = expected_speed(loaded, EngineConfig(model), varied(0.8, 1.25))
    assert wide is not None
    assert wide.startswith("10.2 tokens/s (8.2-12.8), a prompt of 1,024")
    narrow = expected_speed(loaded, EngineConfig(model), varied(0.98, 1.06))
    assert narrow == expected_speed(loaded, EngineConfig(model), SPEEDS)
    times = of(tmp_path, 64, Load(2048, 4, 1024), varied(0.5, 1.0))["int4"].times
    assert times is not None
    assert times.least_tokens_s == times.tokens_s
    assert 1.9 < times.most_tokens_s / times.tokens_s < 2.0  # the scheduler's part stays


def test_the_longest_context_of_a_target_meets_it_and_a_token_more_does_not(tmp_path: Path) -> None:
    config = EngineConfig(ModelConfig(str(write_autoglm(tmp_path))))
    config = replace(config, images=ImagesConfig(max_pixels=1_250_000))
    (none, int8, int4) = phone_steps(BACKEND, config, SPEEDS, 45.0)
    loaded = spec_of(BACKEND, config, "int8")
    screen = _screenshot(loaded, config, 1_250_000)
    times = _StepTimes(costs_of(loaded, 512), SPEEDS, screen)
    own = int8.image_tokens + MESSAGE_TOKENS + ANSWER_TOKENS
    assert int8.longest_context is not None
    assert 2300 + own < int8.longest_context < 65_536
    assert times.later_s(int8.longest_context - own) <= 45.0
    assert times.later_s(int8.longest_context - own + 1) > 45.0
    assert all(step.longest_context is not None for step in (none, int4))
    assert [s.longest_context for s in phone_steps(BACKEND, config, SPEEDS, 0.01)] == [0, 0, 0]
    assert [s.longest_context for s in phone_steps(BACKEND, config, SPEEDS, 1e6)] == [65_536] * 3
    assert [s.longest_context for s in phone_steps(BACKEND, config, SPEEDS)] == [None] * 3
