"""Sliding windows: how many blocks one sequence needs, and what happens when there are fewer."""

from __future__ import annotations

from tests.support.toy_engine import Driver, Outcome, ToySizes, toy_engine

from hearth.core.blocks import max_blocks_held
from hearth.core.request import FinishReason, Request, SamplingParams


def run_alone(sizes: ToySizes) -> Outcome:
    engine, _ = toy_engine(sizes)
    driver = Driver(engine)
    prompt = tuple(i % 97 for i in range(100))
    driver.submit(Request("a", prompt, 5, SamplingParams(temperature=0)))
    driver.run(max_steps=500)
    return driver.outcomes["a"]


def test_the_least_cache_lets_one_sequence_finish_with_any_window_and_budget() -> None:
    for block_size in (4, 16):
        for window in range(1, 2 * block_size + 3):
            for budget in range(1, 2 * block_size + 3):
                least = max_blocks_held(200, window, budget, block_size)
                sizes = ToySizes(block_size, (least,), (window,), 200, 4, budget, 8, False)
                outcome = run_alone(sizes)
                assert outcome.reason is FinishReason.LENGTH, (block_size, window, budget)


def test_a_cache_that_is_too_small_for_one_ends_the_request_and_not_the_engine() -> None:
    outcome = run_alone(ToySizes(4, (3,), (0,), 200, 4, 8, 8, False))
    assert outcome.reason is FinishReason.ERROR
    assert outcome.last is not None
    assert "too few blocks" in outcome.last.message
