"""Drafts change the number of steps and nothing else, whoever drafts and whatever happens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.drafters import LyingDrafter
from tests.support.toy_engine import Driver, Outcome, ToySizes, toy_engine

from hearth.core.config import EngineConfig, ModelConfig, SpeculationConfig
from hearth.core.request import FinishReason, Request, SamplingParams
from hearth.core.step import ExecutorInfo
from hearth.engine import edits as edits_module
from hearth.engine import scheduler as scheduler_module
from hearth.engine.edits import SequenceEdits, TokenCounts
from hearth.engine.sequence import Sequence as EngineSequence
from hearth.engine.speculation import drafts as drafts_module
from hearth.engine.speculation.drafter import Drafter
from hearth.engine.startup import _choose_speculation

PARAMS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.0, seed=3, num_logprobs=0),
    SamplingParams(temperature=0, frequency_penalty=0.5, min_tokens=9),
    SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.2, presence_penalty=0.1),
    SamplingParams(temperature=0, bad_words=((3,), (5, 7), (1, 2, 4)), logit_bias=((9, 2.0),)),
    SamplingParams(temperature=0, frequency_penalty=0.5, num_prompt_logprobs=0),
)
TEXT = [(i * i + 11) % 97 for i in range(40)]


@dataclass(frozen=True)
class Workload:
    """Requests, and what happens to them."""

    sizes: ToySizes
    requests: tuple[Request, ...]
    gaps: tuple[int, ...]  # steps before each request
    cancels: tuple[int, ...]  # index of a request to cancel, one every few steps
    seed: int


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    windows = draw(st.sampled_from([(0,), (0, 6), (9,)]))
    budget = draw(st.sampled_from([3, 8, 16, 64]))
    num_blocks = draw(st.sampled_from([18, 26, 80]))
    sizes = ToySizes(
        num_blocks=(num_blocks,) * len(windows),
        windows=windows,
        max_num_seqs=draw(st.integers(1, 6)),
        budget=budget,
        prefix_caching=draw(st.booleans()),
        num_scored_rows=draw(st.sampled_from([0, 2, 64])),
        vocab_size=draw(st.sampled_from([11, 97])),
    )
    requests: list[Request] = []
    for number in range(draw(st.integers(1, 7))):
        length = draw(st.integers(1, 30))
        request = Request(
            f"r{number}",
            tuple(token % sizes.vocab_size for token in TEXT[:length]),
            draw(st.integers(10, 45)),
            draw(st.sampled_from(PARAMS)),
            draw(st.sampled_from([frozenset[int](), frozenset({5, 6})])),
            priority=draw(st.sampled_from([0, 0, 1])),
        )
        choices = draw(st.sampled_from([1, 1, 3]))
        for choice in range(choices):
            follows = f"r{number}.0" if choice else ""
            name = f"r{number}.{choice}"
            requests.append(replace(request, request_id=name, choice=choice, follows=follows))
    gaps = draw(st.lists(st.integers(0, 4), min_size=len(requests), max_size=len(requests)))
    cancels = draw(st.lists(st.integers(0, len(requests) - 1), max_size=2))
    return Workload(sizes, tuple(requests), tuple(gaps), tuple(cancels), draw(st.integers(0, 99)))


def run(workload: Workload, drafter: Drafter | None, *, cancels: bool = True) -> Driver:
    """The integrity check runs after every step."""
    engine, _ = toy_engine(workload.sizes, drafter=drafter)
    driver = Driver(engine)
    for request, gap in zip(workload.requests, workload.gaps, strict=True):
        for _ in range(gap):
            driver.step()
        driver.submit(request)
    for index in workload.cancels if cancels else ():
        driver.step()
        engine.cancel(workload.requests[index].request_id)
    driver.run(max_steps=5000)
    assert engine.stats().num_blocks_used == 0
    return driver


@dataclass(frozen=True)
class Comparison:
    """A workload without drafts and with them; `cancelled` may have a part of their answers."""

    plain: dict[str, Outcome]
    drafted: Driver
    drafter: LyingDrafter
    cancelled: frozenset[str]

    def differing(self) -> list[str]:
        """The requests whose clients could tell that there were drafts."""
        return [n for n, o in self.drafted.outcomes.items() if not self._is_same(n, o)]

    def _is_same(self, name: str, outcome: Outcome) -> bool:
        expected = self.plain[name]
        if name not in self.cancelled or outcome.reason is not FinishReason.CANCELLED:
            return fate(outcome) == fate(expected)
        return (
            outcome.tokens == expected.tokens[: len(outcome.tokens)]
            and outcome.hashes == expected.hashes[: len(outcome.hashes)]
            and outcome.scores == expected.scores[: len(outcome.scores)]
        )


def compare(workload: Workload) -> Comparison:
    plain = run(workload, None, cancels=False).outcomes
    drafter = LyingDrafter({n: o.tokens for n, o in plain.items()}, workload.seed)
    cancelled = frozenset(workload.requests[index].request_id for index in workload.cancels)
    return Comparison(plain, run(workload, drafter), drafter, cancelled)


def fate(outcome: Outcome) -> tuple[Any, ...]:
    """All that a client can tell, but when it came."""
    last = outcome.last
    assert last is not None
    stop = (last.stop_token, last.message, last.error_code)
    return outcome.tokens, outcome.hashes, outcome.scores, outcome.reason, stop


@settings(max_examples=30, deadline=None)
@given(workloads())
def test_answers_ends_and_logits_are_those_without_drafts(workload: Workload) -> None:
    found = compare(workload)
    assert found.differing() == []
    generated = sum(len(outcome.tokens) for outcome in found.drafted.outcomes.values())
    assert found.drafted.engine.stats().num_generated_tokens == generated


def typical() -> Workload:
    """Little memory, and every kind of request."""
    sizes = ToySizes(
        num_blocks=(30, 30), windows=(0, 9), budget=64, num_scored_rows=64, vocab_size=11
    )
    prompts = [tuple(token % 11 for token in TEXT[: 3 + 4 * n]) for n in range(len(PARAMS))]
    requests = tuple(
        Request(f"r{n}", prompts[n], 40, params, frozenset({5}) if n % 2 else frozenset())
        for n, params in enumerate(PARAMS)
    )
    return Workload(sizes, requests, (0, 2, 0, 1, 0, 3), (), 1)


def test_most_of_what_a_good_drafter_says_is_accepted_and_saves_steps() -> None:
    workload = typical()
    found = compare(workload)
    assert found.differing() == []
    drafter = found.drafter
    assert drafter.num_accepted > 60
    assert drafter.num_accepted < drafter.num_drafted
    plain, drafted = run(workload, None), run(workload, LyingDrafter(drafter.answers))
    stats = drafted.engine.stats()
    assert stats.num_steps < 0.6 * plain.engine.stats().num_steps
    assert stats.num_preemptions > 0
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert stats.num_drafts > 0


def one_too_many(draft: Sequence[int], sampled: Sequence[int]) -> int:
    return min(len(draft), drafts_module.num_accepted(draft, sampled) + 1)


def whole_draft(draft: Sequence[int], sampled: Sequence[int]) -> int:
    return len(draft)


def counts_without_drafts(self: TokenCounts, drafted: Sequence[int]) -> tuple[Any, Any]:
    return self.tokens, self.counts


def counts_with_one_draft(self: TokenCounts, drafted: Sequence[int]) -> tuple[Any, Any]:
    return COUNTS(self, drafted[:1])


def biases_without_drafts(
    self: SequenceEdits, tokens: array[int], drafted: Sequence[int] = ()
) -> dict[int, float]:
    return BIASES(self, tokens)


def all_computed(
    self: EngineSequence, sampled: Sequence[int]
) -> tuple[FinishReason | None, int | None]:
    computed = self.num_computed
    result = APPEND(self, sampled)
    self.num_computed = min(computed, self.num_known)
    return result


COUNTS, BIASES, APPEND = TokenCounts.with_drafted, SequenceEdits.biases, EngineSequence.append


def check_drafts(
    workload: Workload, answers: dict[str, list[int]], fates: dict[str, tuple[Any, ...]]
) -> None:
    for seed in range(5):
        drafted = run(workload, LyingDrafter(answers, seed)).outcomes
        assert {name: fate(outcome) for name, outcome in drafted.items()} == fates


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (scheduler_module, "num_accepted", one_too_many),
        (scheduler_module, "num_accepted", whole_draft),
        (edits_module.TokenCounts, "with_drafted", counts_without_drafts),
        (edits_module.TokenCounts, "with_drafted", counts_with_one_draft),
        (edits_module.SequenceEdits, "biases", biases_without_drafts),
        (EngineSequence, "append", all_computed),
    ],
)
def test_a_fault_in_the_verification_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, mutant: Callable[..., Any]
) -> None:
    workload = typical()
    plain = run(workload, None).outcomes
    answers = {name: outcome.tokens for name, outcome in plain.items()}
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        check_drafts(workload, answers, {n: fate(o) for n, o in plain.items()})


def test_drafts_take_no_block_that_somebody_waits_for() -> None:
    """Two that run fill the cache but for two blocks; a third waits for more than those."""
    sizes = ToySizes(num_blocks=(8,), max_model_len=32, budget=32, num_scored_rows=32)
    requests = [Request(f"r{n}", tuple(TEXT[: 9 + n]), 3) for n in range(2)]
    waits = Request("waits", tuple(TEXT[20:36]), 4)
    drafter = LyingDrafter({}, longest=9)
    engine, executor = toy_engine(sizes, drafter=drafter)
    driver = Driver(engine)
    for request in (*requests, waits):
        driver.outcomes[request.request_id] = Outcome()
        engine.submit(request)
    driver.step()
    assert engine.stats().num_waiting == 1
    driver.step()
    assert 2 < executor.computed[-1] <= 2 + (12 - 9 - 1) + (12 - 10 - 1)
    assert engine.stats().num_blocks_used == 6
    driver.run()


def test_drafts_leave_a_block_for_everyone_to_grow() -> None:
    """Two sequences hold three blocks each; drafts may take new ones only where two stay free."""
    for num_free, may_grow in ((2, False), (3, True)):
        sizes = ToySizes(num_blocks=(6 + num_free,), max_model_len=32, num_scored_rows=32)
        drafter = LyingDrafter({}, seed=1, longest=16)
        engine, executor = toy_engine(sizes, drafter=drafter)
        driver = Driver(engine)
        for number in range(2):
            driver.submit(Request(f"r{number}", tuple(TEXT[number : 9 + number]), 20))
        while engine.stats().num_generated_tokens < 2:
            driver.step()
        assert engine.stats().num_blocks_used == 6
        driver.step()
        drafted = executor.computed[-1] - 2
        assert (drafted > 2 * (12 - 10)) == may_grow
        assert (engine.stats().num_blocks_free == num_free) == (not may_grow)


@pytest.mark.parametrize(
    ("method", "bit_identical", "expected"),
    [
        ("auto", True, "ngram"),
        ("auto", False, "off"),
        ("ngram", False, "ngram"),
        ("off", True, "off"),
    ],
)
def test_speculation_is_on_where_company_changes_no_bit_and_gives_its_reason(
    method: str, bit_identical: bool, expected: str
) -> None:
    config = EngineConfig(ModelConfig("toy"), speculation=SpeculationConfig(method))
    choice = _choose_speculation(config, ExecutorInfo("toy", "", "", bit_identical))
    assert choice.value == expected
    assert ("toy" in choice.reason) == (not bit_identical)


def test_a_full_budget_of_decoding_leaves_no_room_for_drafts() -> None:
    sizes = ToySizes(budget=4, max_num_seqs=4, num_scored_rows=4)
    requests = tuple(Request(f"r{n}", (n + 1,), 12, PARAMS[0]) for n in range(4))
    workload = Workload(sizes, requests, (0,) * 4, (), 0)
    found = compare(workload)
    assert found.differing() == []
    assert found.drafter.num_drafted == 0
