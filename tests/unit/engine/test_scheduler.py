"""Scheduler, blocks and plan builder, driven through the toy executor."""

from __future__ import annotations

import pytest
from tests.support.drafters import LyingDrafter
from tests.support.toy_engine import Driver, ToySizes, toy_engine
from tests.support.toy_executor import solo_scores, solo_tokens, toy_program

from hearth.core.errors import KernelError
from hearth.core.request import FinishReason, Request, SamplingParams
from hearth.engine.engine import MAX_FAILED_STEPS


def prompt_of(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple((7 * i + i * i // 3 + 31 * salt) % 97 for i in range(length))


def expected(
    prompt: tuple[int, ...], num_tokens: int, windows: tuple[int, ...] = (0,)
) -> list[int]:
    return solo_tokens(toy_program(windows=windows), prompt, num_tokens)


def greedy(name: str, prompt: tuple[int, ...], max_tokens: int, **fields: object) -> Request:
    return Request(name, prompt, max_tokens, SamplingParams(temperature=0), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_every_budget_gives_the_tokens_of_a_solo_run(budget: int, prefix_caching: bool) -> None:
    engine, _ = toy_engine(ToySizes(budget=budget, prefix_caching=prefix_caching))
    driver = Driver(engine)
    prompts = {f"r{i}": prompt_of(1 + 3 * i, i) for i in range(8)}
    for name, prompt in prompts.items():
        driver.submit(greedy(name, prompt, 9))
    driver.run()
    for name, prompt in prompts.items():
        assert driver.outcomes[name].tokens == expected(prompt, 9)
        assert driver.outcomes[name].reason is FinishReason.LENGTH


def test_a_repeated_prompt_is_taken_from_the_cache_except_for_its_end() -> None:
    engine, executor = toy_engine(ToySizes(budget=64))
    driver = Driver(engine)
    prompt = prompt_of(16)  # four whole blocks
    driver.submit(greedy("first", prompt, 3))
    driver.run()
    driver.submit(greedy("second", prompt, 3))
    driver.run()
    first, second = driver.outcomes["first"], driver.outcomes["second"]
    assert first.tokens == second.tokens
    assert first.hashes == second.hashes
    assert second.last is not None
    assert second.last.num_cached_tokens == 12  # the last block is computed again for its logits
    assert executor.computed[3] == 4


def test_an_answer_and_its_prompt_are_the_cached_prefix_of_the_next_turn() -> None:
    engine, _ = toy_engine(ToySizes(budget=64))
    driver = Driver(engine)
    driver.submit(greedy("turn 1", prompt_of(10), 11))
    driver.run()
    history = prompt_of(10) + tuple(driver.outcomes["turn 1"].tokens)
    driver.submit(greedy("turn 2", (*history, 1, 2, 3), 5))
    driver.run()
    outcome = driver.outcomes["turn 2"]
    assert outcome.last is not None
    assert outcome.last.num_cached_tokens == 20  # of 21 known after turn 1, 20 were computed
    assert outcome.tokens == expected((*history, 1, 2, 3), 5)


def test_different_cache_keys_share_nothing() -> None:
    engine, _ = toy_engine(ToySizes(budget=64))
    driver = Driver(engine)
    for name, key in (("a", b"x"), ("b", b"y"), ("c", b"y")):
        driver.submit(greedy(name, prompt_of(17), 2, cache_key=key))
        driver.run()
    cached = [driver.outcomes[name].last.num_cached_tokens for name in "abc"]  # type: ignore[union-attr]
    assert cached == [0, 0, 16]


def test_when_blocks_run_out_the_newest_is_preempted_and_everybody_finishes() -> None:
    sizes = ToySizes(num_blocks=(16,), max_model_len=64, budget=32)
    engine, _ = toy_engine(sizes)
    driver = Driver(engine)
    prompts = {f"r{i}": prompt_of(10, i) for i in range(6)}
    for name, prompt in prompts.items():
        driver.submit(greedy(name, prompt, 40))
    order: list[str] = []
    while engine.has_work:
        driver.step()
        order += [n for n, o in driver.outcomes.items() if o.reason and n not in order]
    assert engine.stats().num_preemptions > 0
    assert order[0] == "r0", "the oldest is never preempted"
    for name, prompt in prompts.items():
        assert driver.outcomes[name].tokens == expected(prompt, 40)


def test_a_single_sequence_of_full_length_fits_a_cache_of_its_size() -> None:
    engine, _ = toy_engine(ToySizes(num_blocks=(16,), max_model_len=64, budget=5))
    driver = Driver(engine)
    driver.submit(greedy("long", prompt_of(40), 1000))
    driver.run()
    assert driver.outcomes["long"].tokens == expected(prompt_of(40), 24)
    assert driver.outcomes["long"].reason is FinishReason.LENGTH


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    engine, _ = toy_engine(ToySizes(budget=4))
    driver = Driver(engine)
    driver.submit(greedy("short", prompt_of(3), 30))
    driver.step()
    driver.submit(greedy("long", prompt_of(30, 1), 2))
    for _ in range(8):
        before = len(driver.outcomes["short"].tokens)
        driver.step()
        assert len(driver.outcomes["short"].tokens) == before + 1
    driver.run()


def test_a_budget_below_max_num_seqs_starves_nobody_that_runs() -> None:
    engine, executor = toy_engine(ToySizes(budget=3, max_num_seqs=8, prefix_caching=False))
    driver = Driver(engine)
    for i in range(6):
        driver.submit(greedy(f"r{i}", prompt_of(1 + i, i), 10))
    while engine.has_work:
        before = [len(driver.outcomes[f"r{i}"].tokens) for i in range(6)]
        driver.step()
        after = [len(driver.outcomes[f"r{i}"].tokens) for i in range(6)]
        started = [i for i in range(6) if before[i] and before[i] < 10]
        assert all(after[i] == before[i] + 1 for i in started)
    for i in range(6):
        assert driver.outcomes[f"r{i}"].tokens == expected(prompt_of(1 + i, i), 10)
    assert max(executor.computed) == 3


def test_a_sequence_that_was_already_planned_can_still_be_preempted_for_an_older_one() -> None:
    engine, _ = toy_engine(ToySizes(num_blocks=(16,), budget=5, prefix_caching=False))
    driver = Driver(engine)
    for name in ("b", "c"):  # they decode, and are planned before the chunks of "old"
        driver.submit(greedy(name, prompt_of(2, 3), 50))
    driver.step()
    driver.submit(greedy("old", prompt_of(52, 1), 4, priority=-1))
    driver.run()
    assert engine.stats().num_preemptions > 0
    assert driver.outcomes["old"].tokens == expected(prompt_of(52, 1), 4)
    assert driver.outcomes["c"].tokens == expected(prompt_of(2, 3), 50)


def test_a_prefix_whose_window_was_evicted_is_matched_only_as_far_as_it_is_whole() -> None:
    windows = (0, 6)
    engine, _ = toy_engine(ToySizes(num_blocks=(60, 5), windows=windows, budget=8))
    driver = Driver(engine)
    for name, salt in (("a", 0), ("b", 1), ("c", 2), ("again", 0)):
        driver.submit(greedy(name, prompt_of(30, salt), 3))
        driver.run()
        assert driver.outcomes[name].tokens == expected(prompt_of(30, salt), 3, windows)
    driver.submit(greedy("at once", prompt_of(30, 0), 3))
    driver.run()
    assert driver.outcomes["at once"].tokens == driver.outcomes["a"].tokens
    cached = [driver.outcomes[name].last.num_cached_tokens for name in ("again", "at once")]  # type: ignore[union-attr]
    assert cached == [0, 28]


def test_lower_priority_numbers_go_first_then_arrival() -> None:
    engine, _ = toy_engine(ToySizes(max_num_seqs=1))
    driver = Driver(engine)
    for name, priority in (("a", 1), ("b", 1), ("c", 0)):
        driver.submit(greedy(name, prompt_of(5), 1, priority=priority))
    finished: list[str] = []
    while engine.has_work:
        driver.step()
        finished += [n for n, o in driver.outcomes.items() if o.reason and n not in finished]
    assert finished == ["c", "a", "b"]


def test_a_full_queue_refuses_and_says_so() -> None:
    engine, _ = toy_engine(ToySizes(max_num_seqs=1, max_queued=1))
    driver = Driver(engine)
    for i in range(3):
        driver.submit(greedy(f"r{i}", prompt_of(5), 1))
    driver.run()
    assert driver.outcomes["r2"].reason is FinishReason.ERROR
    assert driver.outcomes["r2"].last.error_code == "overloaded"  # type: ignore[union-attr]
    assert driver.outcomes["r1"].reason is FinishReason.LENGTH


def test_a_stop_token_ends_a_request_and_is_not_emitted() -> None:
    answer = expected(prompt_of(6), 12)
    stop = answer[5]
    engine, _ = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("r", prompt_of(6), 12, stop_token_ids=frozenset({stop})))
    driver.run()
    outcome = driver.outcomes["r"]
    assert outcome.tokens == answer[: answer.index(stop)]
    assert (outcome.reason, outcome.last.stop_token) == (FinishReason.STOP, stop)  # type: ignore[union-attr]


@pytest.mark.parametrize("num_before", [1, 4, 7, 11])
def test_a_resumed_request_goes_on_where_it_stopped(num_before: int) -> None:
    sampling = SamplingParams(temperature=1, seed=11)
    whole = solo_tokens(toy_program(), prompt_of(9), 12, seed=11)
    engine, _ = toy_engine(ToySizes(budget=5))
    driver = Driver(engine)
    driver.submit(Request("r", prompt_of(9), 12, sampling, generated=tuple(whole[:num_before])))
    driver.run()
    assert driver.outcomes["r"].tokens == whole[num_before:]


def test_a_resumed_request_that_was_complete_ends_at_once() -> None:
    whole = expected(prompt_of(9), 3)
    engine, executor = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("full", prompt_of(9), 3, generated=tuple(whole)))
    stop = frozenset({whole[1]})
    driver.submit(
        greedy("stopped", prompt_of(9), 9, generated=tuple(whole[:2]), stop_token_ids=stop)
    )
    driver.run()
    assert driver.outcomes["full"].reason is FinishReason.LENGTH
    assert driver.outcomes["stopped"].reason is FinishReason.STOP
    assert executor.num_steps == 0


def test_equal_requests_with_other_seeds_or_choices_differ_and_the_same_agree() -> None:
    engine, _ = toy_engine(ToySizes())
    driver = Driver(engine)
    for name, seed, choice in (("a", 1, 0), ("b", 1, 0), ("c", 2, 0), ("d", 1, 1)):
        sampling = SamplingParams(temperature=1, seed=seed)
        driver.submit(Request(name, prompt_of(9), 8, sampling, choice=choice))
    driver.run()
    tokens = {name: tuple(driver.outcomes[name].tokens) for name in "abcd"}
    assert tokens["a"] == tokens["b"]
    assert len(set(tokens.values())) == 3


@pytest.mark.parametrize(
    "request_",
    [
        greedy("r", (), 5),
        greedy("r", (1, 97), 5),
        greedy("r", (1, -1), 5),
        greedy("r", (1,), -1),
        greedy("r", prompt_of(64), 1),
        Request("r", (1,), 5, SamplingParams(top_p=0.0)),
        Request("r", (1,), 5, SamplingParams(temperature=float("nan"))),
        Request("r", (1,), 5, SamplingParams(seed=1 << 64)),
        Request("r", (1,), 5, SamplingParams(min_tokens=2), frozenset({97})),
    ],
)
def test_a_request_that_cannot_run_gets_its_error_event_and_harms_nobody(request_: Request) -> None:
    engine, _ = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("good", prompt_of(5), 3))
    driver.submit(request_)
    driver.run()
    assert driver.outcomes["r"].reason is FinishReason.ERROR
    assert driver.outcomes["good"].tokens == expected(prompt_of(5), 3)


def test_a_duplicate_id_does_not_end_the_request_that_has_it() -> None:
    engine, _ = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("r", prompt_of(5), 3))
    engine.submit(greedy("r", prompt_of(6), 3))
    driver.run()
    assert driver.outcomes["r"].tokens == expected(prompt_of(5), 3)


@pytest.mark.parametrize("step", range(12))
def test_cancel_before_any_step_frees_everything_and_leaves_others_alone(step: int) -> None:
    engine, _ = toy_engine(ToySizes(budget=4, num_blocks=(16,)))
    driver = Driver(engine)
    driver.submit(greedy("stays", prompt_of(7), 8))
    driver.submit(greedy("goes", prompt_of(14, 1), 8))

    def cancel(number: int) -> None:
        if number == step:
            engine.cancel("goes")
            engine.cancel("goes")
            engine.cancel("never heard of")

    driver.run(before_step=cancel)
    assert driver.outcomes["stays"].tokens == expected(prompt_of(7), 8)
    goes = driver.outcomes["goes"]
    assert goes.reason in {FinishReason.CANCELLED, FinishReason.LENGTH}
    assert goes.tokens == expected(prompt_of(14, 1), 8)[: len(goes.tokens)]


def test_cancel_between_plan_and_commit_keeps_the_blocks_until_the_commit() -> None:
    engine, _ = toy_engine(ToySizes(budget=4))
    scheduler = engine.scheduler
    scheduler.submit(greedy("r", prompt_of(7), 8))
    decision = scheduler.plan()
    assert decision is not None
    scheduler.cancel("r")
    scheduler.check()
    assert engine.stats().num_blocks_used == 1
    assert [e.finish_reason for e in scheduler.take_events()] == [FinishReason.CANCELLED]
    scheduler.commit(decision, [[]])
    scheduler.check()
    assert engine.stats().num_blocks_used == 0
    assert not scheduler.has_work


def test_accepted_drafts_count_as_computed_and_rejected_ones_do_not() -> None:
    drafter = LyingDrafter({"r": (1, 2, 3, 4)}, longest=0)
    engine, _ = toy_engine(ToySizes(budget=16), drafter=drafter)
    scheduler = engine.scheduler
    scheduler.submit(greedy("r", prompt_of(6), 8))
    decision = scheduler.plan()
    assert decision is not None
    decision.add_draft(0, (1, 2, 3))
    scheduler.commit(decision, [[1, 2, 4, 5]])  # what follows a wrong draft does not count
    scheduler.check()
    assert [e.tokens for e in scheduler.take_events()] == [(1, 2, 4)]
    decision = scheduler.plan()
    assert decision is not None
    assert (decision.starts, decision.num_tokens) == ([8], [1])


def test_a_refused_step_ends_its_requests_and_the_engine_goes_on() -> None:
    engine, executor = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("r", prompt_of(7), 8))
    executor.fail_next = KernelError("no")
    driver.run()
    assert driver.outcomes["r"].reason is FinishReason.ERROR
    assert driver.outcomes["r"].last.error_code == "kernel_error"  # type: ignore[union-attr]
    driver.submit(greedy("next", prompt_of(7), 8))
    driver.run()
    assert driver.outcomes["next"].tokens == expected(prompt_of(7), 8)


def test_an_executor_that_refuses_every_step_ends_the_engine() -> None:
    engine, executor = toy_engine(ToySizes())
    for number in range(MAX_FAILED_STEPS):
        engine.submit(greedy(f"r{number}", prompt_of(7), 8))
        executor.fail_next = KernelError("no")
        if number < MAX_FAILED_STEPS - 1:
            assert engine.step()[-1].finish_reason is FinishReason.ERROR
    with pytest.raises(KernelError):
        engine.step()
    (event,) = engine.fail_all("the engine failed")
    assert (event.finish_reason, event.error_code) == (FinishReason.ERROR, "engine_error")


def test_blocks_behind_a_window_are_freed_and_the_answer_is_the_same() -> None:
    windows = (0, 6)
    sizes = ToySizes(num_blocks=(16, 5), windows=windows, budget=8, max_model_len=64)
    engine, _ = toy_engine(sizes)
    driver = Driver(engine)
    driver.submit(greedy("r", prompt_of(30), 30))
    driver.run()
    assert driver.outcomes["r"].tokens == expected(prompt_of(30), 30, windows)


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_preemption_while_a_prompt_is_scored_loses_and_doubles_nothing(max_tokens: int) -> None:
    sizes = ToySizes(num_blocks=(6,), max_num_seqs=2)  # one logits row is left for the prompt
    engine, _ = toy_engine(sizes)
    driver = Driver(engine)
    prompt = prompt_of(12)
    scored = Request("b", prompt, max_tokens, SamplingParams(0, num_prompt_logprobs=0))
    driver.submit(greedy("a", prompt_of(4), 16))
    driver.submit(scored)
    preempted_at: list[int] = []

    def watch(_: int) -> None:
        sequence = engine.scheduler._queues.by_id.get("b")
        if sequence is not None and sequence.num_preemptions > len(preempted_at):
            preempted_at.append(sequence.num_scored)

    driver.run(before_step=watch)
    assert 1 < preempted_at[0] < len(prompt)
    outcome = driver.outcomes["b"]
    assert outcome.scores == solo_scores(toy_program(), prompt)
    assert outcome.tokens == solo_tokens(toy_program(), prompt, max_tokens)
    assert outcome.reason is FinishReason.LENGTH


def test_a_prompt_that_is_only_scored_leaves_its_blocks_to_others() -> None:
    engine, executor = toy_engine(ToySizes(num_scored_rows=64))
    driver = Driver(engine)
    prompt = prompt_of(13)
    driver.submit(Request("a", prompt, 0, SamplingParams(0, num_prompt_logprobs=0)))
    driver.run()
    assert executor.computed == [12]
    driver.submit(greedy("b", prompt, 2))
    driver.run()
    assert driver.outcomes["b"].last is not None
    assert driver.outcomes["b"].last.num_cached_tokens == 12
    driver.submit(Request("c", prompt, 0, SamplingParams(0, num_prompt_logprobs=0)))
    driver.run()
    assert driver.outcomes["c"].scores == driver.outcomes["a"].scores


def test_nothing_is_computed_where_nothing_is_asked_for() -> None:
    engine, executor = toy_engine(ToySizes())
    driver = Driver(engine)
    driver.submit(greedy("a", prompt_of(9), 0))
    driver.submit(Request("b", prompt_of(1), 0, SamplingParams(0, num_prompt_logprobs=0)))
    driver.run()
    assert executor.num_steps == 0
    assert {o.reason for o in driver.outcomes.values()} == {FinishReason.LENGTH}
