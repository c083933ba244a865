"""Windows in the real engine: blocks behind them are freed, and the answers stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.contract.conftest import Build
from tests.support.engines import EngineSizes, build_engine
from tests.support.executors import Setup
from tests.support.hf_models import CASES, NUM_NEW_TOKENS, Expected, ModelCase
from tests.support.toy_engine import Driver

from hearth.core.blocks import max_blocks_held
from hearth.core.request import Request, SamplingParams
from hearth.models.loader import load_model_spec

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
    sizes = EngineSizes(BUDGET, block_size=BLOCK_SIZE, num_blocks=64, prefix_caching=False)
    engine = build_engine(build(Setup(loaded, BUDGET, BLOCK_SIZE, 64)), sizes)
    driver = Driver(engine)
    index = max(range(len(expected.prompts)), key=lambda i: len(expected.prompts[i]))
    prompt = expected.prompts[index]
    driver.submit(Request("long", prompt, NUM_NEW_TOKENS, SamplingParams(temperature=0)))
    most = [0] * len(windows)

    def watch(_: int) -> None:
        groups = engine.scheduler.blocks._groups
        held = [sum(refs > 0 for refs in group.refs) for group in groups]
        most[:] = [max(one, now) for one, now in zip(most, held)]

    driver.run(before_step=watch)
    length = len(prompt) + NUM_NEW_TOKENS
    for window, held in zip(windows, most):
        assert 0 < held <= max_blocks_held(length, window, BUDGET, BLOCK_SIZE)
        assert (held < -(-length // BLOCK_SIZE)) == (window > 0)
    assert tuple(driver.outcomes["long"].tokens) == expected.greedy[index]
