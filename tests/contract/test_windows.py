"""Windows in the real engine: blocks behind them are freed, and the answers stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.conftest import Build
from tests.support.engines import EngineSizes, build_engine
from tests.support.executors import Setup
from tests.support.hf_models import CASES, NUM_NEW_TOKENS, Expected, ModelCase
from tests.support.toy_engine import Driver

from hearth.core.blocks import max_blocks_held
from hearth.core.config import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from hearth.core.errors import ConfigError
from hearth.core.request import Request, SamplingParams
from hearth.engine.startup import start
from hearth.models.loader import LoadedSpec, load_model_spec

MISTRAL = next(case for case in CASES if case.name == "mistral-4x2-window")
WINDOWED = [case for case in CASES if case.sizes.get("sliding_window")]
BLOCK_SIZE, BUDGET = 16, 16


@pytest.mark.parametrize("case", WINDOWED, ids=lambda case: case.name)
def test_a_sequence_beyond_its_window_holds_no_more_blocks_than_the_window_needs(
    case: ModelCase, expected_of: Callable[[ModelCase], Expected], build: Build
) -> None:
    expected = expected_of(case)
    loaded = load_model_spec(expected.path)
    windows = [group.window for group in loaded.program.kv_groups]
    assert any(windows)
    index = max(range(len(expected.prompts)), key=lambda i: len(expected.prompts[i]))
    prompt = expected.prompts[index]
    most, answer = held_blocks(build, loaded, prompt)
    length = len(prompt) + NUM_NEW_TOKENS
    for window, held in zip(windows, most):
        assert 0 < held <= max_blocks_held(length, window, BUDGET, BLOCK_SIZE)
        assert (held < -(-length // BLOCK_SIZE)) == (window > 0)
    assert answer == expected.greedy[index]


def held_blocks(
    build: Build, loaded: LoadedSpec, prompt: tuple[int, ...]
) -> tuple[list[int], tuple[int, ...]]:
    """The most blocks that a greedy request ever holds, per group, and its answer."""
    sizes = EngineSizes(BUDGET, block_size=BLOCK_SIZE, num_blocks=64, prefix_caching=False)
    engine = build_engine(build(Setup(loaded, BUDGET, BLOCK_SIZE, 64)), sizes)
    driver = Driver(engine)
    driver.submit(Request("long", prompt, NUM_NEW_TOKENS, SamplingParams(temperature=0)))
    most = [0] * len(loaded.program.kv_groups)

    def watch(_: int) -> None:
        groups = engine.scheduler.blocks._groups
        held = [sum(refs > 0 for refs in group.refs) for group in groups]
        most[:] = [max(one, now) for one, now in zip(most, held)]

    driver.run(before_step=watch)
    return most, tuple(driver.outcomes["long"].tokens)


@pytest.fixture
def as_llama(expected_of: Callable[[ModelCase], Expected], tmp_path: Path) -> Path:
    """The windowed Mistral's weights as a Llama, which has no window."""
    path = tmp_path / "llama"
    shutil.copytree(expected_of(MISTRAL).path, path)
    values = json.loads((path / "config.json").read_text())
    del values["sliding_window"]
    values.update(architectures=["LlamaForCausalLM"], model_type="llama")
    (path / "config.json").write_text(json.dumps(values))
    return path


def test_window_gives_the_answers_of_a_model_with_that_window(
    as_llama: Path, expected_of: Callable[[ModelCase], Expected], build: Build
) -> None:
    """transformers' Mistral with sliding_window against a Llama under --window."""
    expected = expected_of(MISTRAL)
    window = MISTRAL.sizes["sliding_window"]
    limited = load_model_spec(as_llama, window=window)
    for index in (0, 15):
        prompt = expected.prompts[index]
        held, answer = held_blocks(build, limited, prompt)
        assert len(prompt) + NUM_NEW_TOKENS > 2 * window
        assert answer == expected.greedy[index]
        assert held[0] <= max_blocks_held(1 << 20, window, BUDGET, BLOCK_SIZE)
    _, whole = held_blocks(build, load_model_spec(as_llama), expected.prompts[15])
    assert whole != expected.greedy[15]
    # The model for another length is still under the window.
    assert limited.at_length(64).program == limited.program


def test_window_does_the_same_to_a_model_of_transformers(
    as_llama: Path, expected_of: Callable[[ModelCase], Expected]
) -> None:
    expected = expected_of(MISTRAL)
    config = EngineConfig(
        ModelConfig(str(as_llama), window=MISTRAL.sizes["sliding_window"]),
        CacheConfig(BLOCK_SIZE, memory_bytes=16 << 20),
        SchedulerConfig(4, BUDGET),
        DeviceConfig(1, "automodel"),
    )
    driver = Driver(start(config, lambda *_: None).engine)
    for index in (0, 15):
        sampling = SamplingParams(temperature=0)
        driver.submit(Request(str(index), expected.prompts[index], NUM_NEW_TOKENS, sampling))
    driver.run()
    for index in (0, 15):
        assert tuple(driver.outcomes[str(index)].tokens) == expected.greedy[index]


def test_window_makes_the_memory_plan_smaller_and_says_so(as_llama: Path) -> None:
    config = EngineConfig(
        ModelConfig(str(as_llama)),
        CacheConfig(BLOCK_SIZE),
        SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=BUDGET),
    )
    plain = start(config, lambda *_: None)
    limited = start(replace(config, model=replace(config.model, window=24)), lambda *_: None)
    blocks = [started.engine.stats().num_blocks_total for started in (plain, limited)]
    assert blocks == [2 * 512 // BLOCK_SIZE, 2 * 4]
    (choice,) = (c for c in limited.ready.resolved.choices if c.name == "window")
    assert choice.value == "24 tokens"
    assert any("--window" in warning for warning in limited.ready.resolved.warnings)
    assert not any("--window" in warning for warning in plain.ready.resolved.warnings)
    for started in (plain, limited):
        started.engine.close()


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(as_llama: Path, window: int) -> None:
    with pytest.raises(ConfigError, match=f"--window is {window}"):
        start(EngineConfig(ModelConfig(str(as_llama), window=window)), lambda *_: None)


def test_a_window_on_a_model_with_windows_is_refused(
    expected_of: Callable[[ModelCase], Expected],
) -> None:
    with pytest.raises(
        ConfigError, match=r"2 of the model's 2 layers .* of their own \(24 tokens\)"
    ):
        load_model_spec(expected_of(MISTRAL).path, window=8)


def test_a_window_as_long_as_the_context_says_that_it_does_nothing(as_llama: Path) -> None:
    config = EngineConfig(ModelConfig(str(as_llama), window=512), CacheConfig(BLOCK_SIZE))
    started = start(config, lambda *_: None)
    assert any("has no effect" in warning for warning in started.ready.resolved.warnings)
    started.engine.close()
