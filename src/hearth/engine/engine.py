"""Engine: one step after the other. Scheduler, plan builder and executor put together.

Single-threaded and free of I/O: the process around it moves the messages. Used directly by tests
and by benchmarks of the engine's own cost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from hearth.core.config import EngineConfig
from hearth.core.errors import EngineError, HearthError, RequestError
from hearth.core.events import EngineObserver, EngineStats
from hearth.core.request import Request, TokenLogprobs
from hearth.core.step import Executor, KvConfig, StepLimits, StepPlan, StepResult
from hearth.engine.decision import StepDecision
from hearth.engine.encoding import Encoding, failed_sequences
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.logprobs import prompt_logprobs, row_logprobs
from hearth.engine.messages import WireEvent
from hearth.engine.scheduler import Scheduler
from hearth.engine.speculation.drafter import Drafter
from hearth.engine.stats import Counters
from hearth.engine.step import StepBuilder
from hearth.host.memory import read_peak_bytes

logger = logging.getLogger("hearth.engine")

# An executor that refuses so many steps in a row refuses everything.
MAX_FAILED_STEPS = 3


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The sizes that were resolved at the start, which executor and engine must agree on."""

    limits: StepLimits
    kv: KvConfig


class Engine:
    """Takes requests, makes steps, gives events."""

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        shape: EngineShape,
        *,
        drafter: Drafter | None = None,
        encoding: Encoding | None = None,
        observers: Iterable[EngineObserver] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`encoding`: of images; None: requests with images are refused."""
        self._executor = executor
        self._encoding = encoding
        self._clock = clock
        self._checks = config.debug_checks
        self._num_failed_steps = 0
        self._num_stalls = 0
        self._counters = Counters()
        self._observers = (self._counters, *observers)
        program = executor.program
        self._blocks = BlockManager(
            shape.kv.block_size,
            shape.kv.num_blocks,
            [group.window for group in program.kv_groups],
            enable_prefix_caching=config.cache.enable_prefix_caching,
        )
        self.scheduler = Scheduler(
            config.scheduler,
            self._blocks,
            shape.limits,
            vocab_size=program.vocab_size,
            drafter=drafter,
            observers=self._observers,
            clock=clock,
        )
        self._builder = StepBuilder(shape.limits, shape.kv, want_hashes=config.debug_hashes)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell something."""
        return self.scheduler.has_work

    def submit(self, request: Request) -> None:
        """Queues a request; one that cannot be run gets its ERROR event."""
        try:
            if request.images:
                if self._encoding is None:
                    raise RequestError("this model takes no images", param="messages")
                self._encoding.check(request)
            self.scheduler.submit(request)
        except RequestError as error:
            if error.param == "request_id":  # an event would end the request that has the id
                logger.error("engine_duplicate_request %s", error)
            else:
                self.scheduler.reject(request, error)
        except HearthError as error:
            self.scheduler.reject(request, error)

    def cancel(self, request_id: str) -> None:
        """Ends a request; unknown or ended ids are ignored."""
        self.scheduler.cancel(request_id)

    def step(self) -> list[WireEvent]:
        """Makes one step if there is something to compute; returns all news since the last call.

        A step that the executor refuses (HearthError) ends its requests; MAX_FAILED_STEPS such
        steps in a row, and any other error, are raised: then the engine's state is in doubt.
        """
        started, drafter = self._clock(), self.scheduler.drafter
        if self._encoding is not None:
            self._encoding.refresh(*self.scheduler.sequences, self._blocks)
        # Prompts of a worse priority than that of an awaited image wait for it.
        most_priority = None if self._encoding is None else self._encoding.priority
        decision = self.scheduler.plan(most_priority)
        if decision is not None:
            try:
                self._run(decision)
                if drafter is not None and decision.is_offered:
                    num_drafted = sum(map(len, decision.drafts))
                    drafter.note_step(decision.sequences, num_drafted, self._clock() - started)
            except HearthError as error:
                logger.exception("engine_step_refused")
                self._num_failed_steps += 1
                if self._num_failed_steps >= MAX_FAILED_STEPS:
                    raise
                self.scheduler.fail(decision, error)
        if self._encoding is not None:
            step_s = None if decision is None else self._clock() - started
            self._encode(self._encoding, step_s)
        return self.scheduler.take_events()

    def _encode(self, encoding: Encoding, step_s: float | None) -> None:
        """Some patches of an image; one that cannot be encoded ends the requests that show it.

        After a step, which took `step_s`, until as much time has gone by, or the image is done.
        """
        started = self._clock()
        failed = encoding.advance(is_busy=step_s is not None)
        while step_s and not (failed or encoding.is_idle) and self._clock() - started < step_s:
            failed = encoding.advance(is_busy=True)
        if failed is None:
            return
        logger.error("engine_image_failed %s", failed.error)
        running, waiting = self.scheduler.sequences
        for sequence in failed_sequences(failed, [*running, *waiting]):
            self.scheduler.abort(sequence, failed.error)

    def take_events(self) -> list[WireEvent]:
        """News since the last call or step, without making a step."""
        return self.scheduler.take_events()

    def fail_all(self, message: str) -> list[WireEvent]:
        """The last events of an engine that cannot go on: every request ends with an ERROR."""
        self.scheduler.fail_all(EngineError(message))
        return self.scheduler.take_events()

    def stats(self) -> EngineStats:
        """A snapshot, between two steps."""
        counters, blocks, encoding = self._counters, self._blocks, self._encoding
        num_free = blocks.num_free
        return EngineStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_blocks_total=blocks.num_total,
            num_blocks_free=num_free,
            num_blocks_cached=blocks.num_cached,
            num_blocks_used=blocks.num_total - num_free,
            num_steps=counters.num_steps,
            num_computed_tokens=counters.num_computed_tokens,
            num_generated_tokens=counters.num_generated_tokens,
            num_preemptions=counters.num_preemptions,
            num_prefix_query_tokens=counters.num_prefix_query_tokens,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_submitted=counters.num_submitted,
            num_finished=counters.num_finished,
            num_stalls=self._num_stalls,
            num_drafts=counters.num_drafts,
            num_draft_tokens=counters.num_draft_tokens,
            num_accepted_tokens=counters.num_accepted_tokens,
            execute_s=counters.execute_s,
            peak_bytes=read_peak_bytes(),
            num_images=encoding.num_encoded if encoding else 0,
            encode_s=encoding.encode_s if encoding else 0.0,
        )

    def note_stall(self) -> None:
        """The front end does not take its events; the engine pauses until it does."""
        if self._num_stalls == 0:
            logger.warning("engine_stalled the front end does not take its events")
        self._num_stalls += 1

    def check_when_idle(self) -> None:
        """In debug mode: asserts the integrity of the bookkeeping, and that nothing leaked."""
        if self._checks:
            self.scheduler.check()
            assert self._blocks.num_free == self._blocks.num_total, "blocks leaked"

    def close(self) -> None:
        """Closes the executor."""
        self._executor.close()
        if self._encoding is not None:
            self._encoding.close()

    def _run(self, decision: StepDecision) -> None:
        """Executes and commits a decision. Raises what the executor raises."""
        plan = self._builder.build(decision)
        started = self._clock()
        result = self._executor.execute(plan)
        execute_s = self._clock() - started
        self._num_failed_steps = 0
        sampled = self._builder.distribute(decision, result.tokens.tolist())
        num_generated = self.scheduler.commit(
            decision,
            sampled,
            self._hashes(decision, result),
            self._logprobs(decision, plan, result),
            prompt_logprobs(decision, result) if any(decision.num_given) else None,
        )
        num_tokens, num_sequences = len(plan.tokens), len(decision.sequences)
        for observer in self._observers:
            observer.on_step(num_sequences, num_tokens, num_generated, execute_s)

    def _logprobs(
        self, decision: StepDecision, plan: StepPlan, result: StepResult
    ) -> list[list[TokenLogprobs | None]] | None:
        """Log-probabilities of the rows that ask, grouped like the tokens; None: none asks."""
        wanted = plan.sampling.num_logprobs
        if wanted is None or not self._builder.wants_logprobs:
            return None
        given = plan.sampling.given
        if given is not None:
            wanted = np.where(given < 0, wanted, np.int32(-1))
        return self._builder.distribute(decision, row_logprobs(wanted, result))

    def _hashes(self, decision: StepDecision, result: StepResult) -> list[list[int]] | None:
        """Debug hashes, grouped like the tokens."""
        if result.hashes is None:
            return None
        return self._builder.distribute(decision, result.hashes.tolist())
