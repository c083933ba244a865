"""Random lives of requests over tiny block pools, with an integrity check after every step.

With and without drafts, right ones and wrong ones.

The clock is simulated: some requests have deadlines, which come before, in and after their steps.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.support.drafters import LyingDrafter
from tests.support.toy_engine import Driver, Outcome, ToySizes, toy_engine
from tests.support.toy_executor import solo_scores, solo_tokens, toy_program

from hearth.core.blocks import max_blocks_held
from hearth.core.request import FinishReason, Request, SamplingParams
from hearth.engine.decision import StepDecision

# Prompts are cut from a few long texts, so that prefixes are shared, aligned to blocks or not.
TEXTS = [[(i * i + 13 * t) % 97 for i in range(40)] for t in range(2)]
BLOCK_SIZE = 4
MAX_MODEL_LEN = 48


class EngineLife(RuleBasedStateMachine):
    """submit, cancel, expire, step in any order; answers equal solo runs, nothing leaks."""

    @initialize(
        budget=st.sampled_from([1, 2, 5, 8, 16, 64]),
        max_num_seqs=st.integers(1, 3) | st.integers(4, 8),
        spare_blocks=st.integers(0, 4) | st.integers(0, 20),
        prefix_caching=st.booleans(),
        windows=st.sampled_from([(0,), (0, 5), (7,), (0, 9)]),
        num_scored_rows=st.sampled_from([0, 1, 7, 64]),
        draft_seed=st.none() | st.integers(0, 99),
    )
    def begin(
        self,
        budget: int,
        max_num_seqs: int,
        spare_blocks: int,
        prefix_caching: bool,
        windows: tuple[int, ...],
        num_scored_rows: int,
        draft_seed: int | None,
    ) -> None:
        num_blocks = tuple(
            max_blocks_held(MAX_MODEL_LEN, window, budget, BLOCK_SIZE) + spare_blocks
            for window in windows
        )
        sizes = ToySizes(
            BLOCK_SIZE,
            num_blocks,
            windows,
            MAX_MODEL_LEN,
            max_num_seqs,
            budget,
            8,
            prefix_caching,
            num_scored_rows=num_scored_rows,
        )
        self.now = 1.0
        self.answers: dict[str, list[int]] = {}
        drafter = None if draft_seed is None else LyingDrafter(self.answers, draft_seed)
        self.engine, self.executor = toy_engine(sizes, lambda: self.now, drafter)
        self.driver = Driver(self.engine)
        self.program = toy_program(windows=windows)
        self.requests: dict[str, Request] = {}
        self.stops: dict[str, list[int]] = {}

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, 9) | st.integers(1, 40),
        tail=st.lists(st.integers(0, 96), max_size=3),
        max_tokens=st.integers(0, 12) | st.integers(25, 40),
        seed=st.none() | st.integers(0, 2),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        num_generated=st.integers(0, 3),
        stop_at=st.none() | st.integers(0, 11),
        time_left=st.sampled_from([None, None, None, 0.0, 1.0, 3.0, 12.0]),
        is_scored=st.booleans(),
    )
    def submit(
        self,
        text: list[int],
        length: int,
        tail: list[int],
        max_tokens: int,
        seed: int | None,
        priority: int,
        num_generated: int,
        stop_at: int | None,
        time_left: float | None,
        is_scored: bool,
    ) -> None:
        prompt = tuple(text[:length] + tail)
        sampling = SamplingParams(
            temperature=0 if seed is None else 1,
            seed=seed or 0,
            num_prompt_logprobs=0 if is_scored else -1,
        )
        answer = solo_tokens(self.program, prompt, max_tokens, seed=seed)
        stop_ids = frozenset(answer[stop_at : stop_at + 1]) if stop_at is not None else frozenset()
        until = next((i for i, token in enumerate(answer) if token in stop_ids), len(answer))
        name = f"r{len(self.requests)}"
        generated = tuple(answer[: max(0, min(num_generated, until, max_tokens - 1))])
        request = Request(
            name,
            prompt,
            max_tokens,
            sampling,
            stop_ids,
            generated,
            priority=priority,
            deadline=0.0 if time_left is None else self.now + time_left,
        )
        self.requests[name] = request
        self.stops[name] = answer[len(generated) : until]
        self.answers[name] = answer
        self.driver.submit(request)
        self.engine.scheduler.check()

    @rule(text=st.sampled_from(TEXTS), count=st.integers(2, 6), length=st.integers(1, 8))
    def submit_a_burst_of_long_answers(self, text: list[int], count: int, length: int) -> None:
        """Admitted together, they outgrow a small pool and must be preempted."""
        for number in range(count):
            self.submit(text, length, [number], 35, None, 0, 0, None, None, number % 2 == 0)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.cancel(name)
        self.engine.scheduler.check()

    @rule(count=st.integers(1, 15), step_s=st.sampled_from([0.0, 0.5, 1.0]))
    def step(self, count: int, step_s: float) -> None:
        for _ in range(count):
            self.now += step_s
            self.driver.step()
            for name, outcome in self.driver.outcomes.items():
                if outcome.reason is None:
                    deadline = self.requests[name].deadline
                    assert not deadline or deadline > self.now, "it runs beyond its deadline"

    @precondition(lambda self: self.engine.has_work)
    @rule(data=st.data())
    def step_with_a_cancel_inside(self, data: st.DataObject) -> None:
        """The request is cancelled after the plan was made and before it is committed."""
        scheduler = self.engine.scheduler
        decision = scheduler.plan()
        if decision is None:
            return
        victims = data.draw(st.sets(st.sampled_from(decision.sequences), max_size=2))
        for victim in sorted(victims, key=lambda v: v.rank):
            scheduler.cancel(victim.request_id)
        scheduler.check()
        self._finish_step(decision)
        scheduler.check()

    def _finish_step(self, decision: StepDecision) -> None:
        self.engine._run(decision)
        self.driver.take(self.engine.scheduler.take_events())

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.run(max_steps=20_000)
        stats = self.engine.stats()
        assert stats.num_blocks_used == 0
        for name, outcome in self.driver.outcomes.items():
            assert outcome.reason is not None, "a request without an end"
            if outcome.reason is FinishReason.ERROR:
                assert outcome.last is not None
                if outcome.last.error_code == "overloaded":
                    continue
                deadline = self.requests[name].deadline
                assert outcome.last.error_code == "deadline_exceeded"
                assert 0 < deadline <= self.now, "it was ended before its time"
            self._check_scores(name, outcome)
            answer = self.stops[name]
            assert outcome.tokens == answer[: len(outcome.tokens)]
            if outcome.reason in {FinishReason.STOP, FinishReason.LENGTH}:
                room = MAX_MODEL_LEN - len(self.requests[name].prompt)
                room -= len(self.requests[name].generated)
                assert len(outcome.tokens) == min(len(answer), room)

    def _check_scores(self, name: str, outcome: Outcome) -> None:
        """Each token of the prompt once, whatever became of the sequence in between."""
        request = self.requests[name]
        expected: list[float] = []
        if request.sampling.num_prompt_logprobs >= 0 and not request.generated:
            expected = solo_scores(self.program, request.prompt)
        assert outcome.scores == expected[: len(outcome.scores)]
        if outcome.tokens or outcome.reason in {FinishReason.STOP, FinishReason.LENGTH}:
            assert outcome.scores == expected


TestEngineLife = EngineLife.TestCase
TestEngineLife.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
