"""How a step's budget is shared by prefills: who goes first, and that nobody starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.toy_engine import Driver, ToySizes, toy_engine
from tests.support.toy_executor import solo_tokens, toy_program

from hearth.core.request import Request, SamplingParams
from hearth.engine.budget import share_prefills

missing_tokens = st.lists(st.integers(1, 300), min_size=1, max_size=8)


def prompt_of(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((11 * i + i * i // 5 + 29 * salt) % 97 for i in range(length))


def greedy(name: str, length: int, max_tokens: int = 1, **fields: object) -> Request:
    prompt = prompt_of(length, len(name) + ord(name[-1]))
    return Request(name, prompt, max_tokens, SamplingParams(temperature=0), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("missing", "budget", "shares"),
    [
        ([100], 64, [64]),
        ([100, 100], 64, [64, 0]),  # equal: first come, first served
        ([100, 51], 64, [64, 0]),  # not much shorter
        ([100, 50], 64, [32, 32]),
        ([100, 20], 64, [44, 20]),  # what the short one leaves goes to the first
        ([100, 20, 5], 64, [39, 20, 5]),
        ([100, 30, 5], 64, [32, 27, 5]),  # the shortest first
        ([10, 100, 90], 64, [10, 54, 0]),  # in rank order where none is much shorter
        ([100, 1], 1, [1, 0]),
    ],
)
def test_the_first_gets_half_and_much_shorter_ones_the_rest(
    missing: list[int], budget: int, shares: list[int]
) -> None:
    assert share_prefills(missing, budget) == shares


@given(missing_tokens, st.integers(1, 512))
def test_the_budget_is_used_up_and_nobody_gets_more_than_it_lacks(
    missing: list[int], budget: int
) -> None:
    shares = share_prefills(missing, budget)
    assert all(0 <= share <= lack for share, lack in zip(shares, missing, strict=True))
    assert sum(shares) == min(budget, sum(missing))
    assert shares[0] >= min(missing[0], (budget + 1) // 2)


@given(missing_tokens, st.integers(1, 64))
def test_a_prompt_waits_at_most_twice_as_long_as_behind_those_before_it(
    missing: list[int], budget: int
) -> None:
    """Whatever shorter prompts keep coming behind it: here, one in every step."""
    first_come = -(-sum(missing) // budget)
    left = list(missing)
    steps = 0
    while any(left):
        live = [i for i, lack in enumerate(left) if lack]
        shares = share_prefills([*(left[i] for i in live), 1, 1], budget)
        for i, share in zip(live, shares):
            left[i] -= share
        steps += 1
    assert steps <= 2 * first_come + len(missing)


def test_a_short_prompt_behind_a_long_one_starts_in_the_next_step() -> None:
    engine, executor = toy_engine(ToySizes(budget=8))
    driver = Driver(engine)
    driver.submit(greedy("long", 60))
    driver.step()
    driver.submit(greedy("short", 4))
    driver.step()
    assert driver.outcomes["short"].reason is not None
    driver.run()
    assert sum(executor.computed) == 64, "the passing costs nothing"
    assert executor.num_steps == 8


def test_a_long_prompt_moves_on_while_short_ones_keep_coming() -> None:
    engine, _ = toy_engine(ToySizes(budget=8, prefix_caching=False))
    driver = Driver(engine)
    driver.submit(greedy("long", 60))
    for number in range(15):  # half of the budget: 60 tokens in 15 steps
        driver.submit(greedy(f"s{number}", 4))
        driver.step()
    assert driver.outcomes["long"].reason is not None


def test_a_short_prompt_takes_no_place_that_one_before_it_needs() -> None:
    engine, _ = toy_engine(ToySizes(budget=8, max_num_seqs=2))
    driver = Driver(engine)
    driver.submit(greedy("running", 2, max_tokens=30))
    driver.step()
    driver.submit(greedy("long", 60))
    driver.submit(greedy("short", 4))
    driver.step()
    assert driver.outcomes["short"].reason is None, "both places are taken"
    driver.run()


def test_a_short_prompt_takes_no_blocks_that_one_before_it_needs() -> None:
    engine, _ = toy_engine(ToySizes(budget=64, num_blocks=(16,), prefix_caching=False))
    driver = Driver(engine)
    driver.submit(greedy("running", 30, max_tokens=3))
    driver.step()
    driver.submit(greedy("large", 50))
    driver.submit(greedy("short", 4))
    driver.step()
    assert driver.outcomes["short"].reason is None, "it would fit, but goes after the large one"
    driver.run()


def test_a_lower_priority_gets_what_the_higher_one_leaves() -> None:
    engine, _ = toy_engine(ToySizes(budget=8, prefix_caching=False))
    driver = Driver(engine)
    driver.submit(greedy("low", 4, priority=1))
    driver.submit(greedy("high", 28))
    for _ in range(3):
        driver.step()
        assert driver.outcomes["low"].reason is None
    driver.step()
    assert driver.outcomes["low"].reason is not None


def test_a_deadline_ends_a_request_between_two_steps_wherever_it_is() -> None:
    now = 100.0
    engine, _ = toy_engine(ToySizes(budget=4, max_num_seqs=2), lambda: now)
    driver = Driver(engine)
    for name, length, limit in (("decoding", 3, 103.0), ("prefilling", 30, 103.0)):
        driver.submit(greedy(name, length, 40, deadline=limit))
    driver.submit(greedy("waiting", 20, 40, deadline=102.0))
    driver.submit(greedy("stays", 5, 6, deadline=1000.0))
    while now < 102:
        driver.step()
        now += 1
    driver.step()
    assert driver.outcomes["waiting"].last.error_code == "deadline_exceeded"  # type: ignore[union-attr]
    assert driver.outcomes["decoding"].reason is driver.outcomes["prefilling"].reason is None
    now += 1
    driver.step()
    outcomes = driver.outcomes
    assert outcomes["decoding"].last.error_code == "deadline_exceeded"  # type: ignore[union-attr]
    assert outcomes["prefilling"].last.error_code == "deadline_exceeded"  # type: ignore[union-attr]
    assert len(outcomes["decoding"].tokens) == 3
    driver.run()
    assert outcomes["stays"].tokens == solo_tokens(toy_program(), greedy("stays", 5, 6).prompt, 6)


def test_a_request_that_comes_too_late_costs_no_step() -> None:
    engine, executor = toy_engine(ToySizes(), lambda: 100.0)
    driver = Driver(engine)
    driver.submit(greedy("late", 9, 9, deadline=99.0))
    driver.step()
    assert driver.outcomes["late"].last.error_code == "deadline_exceeded"  # type: ignore[union-attr]
    assert executor.num_steps == 0
    assert not engine.has_work


def test_a_deadline_in_a_step_frees_the_blocks_when_the_step_is_committed() -> None:
    now = 100.0
    engine, _ = toy_engine(ToySizes(budget=4), lambda: now)
    scheduler = engine.scheduler
    scheduler.submit(greedy("r", 7, 8, deadline=101.0))
    decision = scheduler.plan()
    assert decision is not None
    now = 102.0
    assert scheduler.plan() is None
    assert [event.error_code for event in scheduler.take_events()] == ["deadline_exceeded"]
    assert engine.stats().num_blocks_used == 1, "the step in flight still writes to it"
    scheduler.commit(decision, [[]])
    scheduler.check()
    assert engine.stats().num_blocks_used == 0


SCORING = ToySizes(4, (96,), (0,), 128, max_num_seqs=4, budget=32, num_scored_rows=4)


def scored(name: str, length: int) -> Request:
    prompt = prompt_of(length, ord(name[-1]))
    return Request(name, prompt, 0, SamplingParams(0, num_prompt_logprobs=0))


def test_what_a_scored_prompt_has_no_logits_rows_for_goes_to_the_next_one() -> None:
    engine, _ = toy_engine(
        ToySizes(num_scored_rows=4, max_num_seqs=4, budget=32, max_model_len=128, num_blocks=(96,))
    )
    driver = Driver(engine)
    driver.submit(scored("a", 100))
    driver.submit(greedy("b", 100))
    for _ in range(8):
        driver.step()
    assert driver.outcomes["b"].reason is not None, "it waited for rows that it does not need"
    assert driver.outcomes["a"].reason is None


def test_a_scored_prompt_that_waits_for_logits_rows_holds_nobody_up_behind_it() -> None:
    engine, _ = toy_engine(
        ToySizes(num_scored_rows=4, max_num_seqs=4, budget=32, max_model_len=128, num_blocks=(96,))
    )
    driver = Driver(engine)
    driver.submit(scored("a", 120))
    driver.submit(scored("b", 10))
    driver.submit(greedy("c", 20))
    for _ in range(4):
        driver.step()
    assert driver.outcomes["c"].reason is not None
    driver.run(max_steps=200)
    assert driver.outcomes["a"].reason is not None
    assert driver.outcomes["b"].reason is not None
