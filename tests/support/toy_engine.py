"""Engines around the toy executor, and a driver that collects what they emit."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.toy_executor import ToyExecutor, toy_program

from hearth.core.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    Resolved,
    SchedulerConfig,
)
from hearth.core.request import FinishReason, Request
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.engine import Engine, EngineShape
from hearth.engine.messages import Ready, WireEvent
from hearth.engine.speculation.drafter import Drafter
from hearth.engine.startup import StartedEngine


@dataclass(frozen=True)
class ToySizes:
    """Small enough that everything runs short."""

    block_size: int = 4
    num_blocks: tuple[int, ...] = (64,)
    windows: tuple[int, ...] = (0,)
    max_model_len: int = 64
    max_num_seqs: int = 8
    budget: int = 16
    max_queued: int = 1000
    prefix_caching: bool = True
    vocab_size: int = 97
    num_scored_rows: int = 0  # logits rows beside one a sequence


def toy_engine(
    sizes: ToySizes,
    clock: Callable[[], float] = time.monotonic,
    drafter: Drafter | None = None,
) -> tuple[Engine, ToyExecutor]:
    """An engine and its executor."""
    config = EngineConfig(
        ModelConfig("toy"),
        CacheConfig(sizes.block_size, sizes.prefix_caching),
        SchedulerConfig(sizes.max_num_seqs, sizes.budget, sizes.max_queued),
        debug_hashes=True,
        debug_checks=True,
    )
    sequences = min(sizes.max_num_seqs, sizes.budget)
    rows = min(sizes.max_num_seqs + sizes.num_scored_rows, sizes.budget)
    limits = StepLimits(sizes.budget, sequences, rows, sizes.max_model_len)
    kv = KvConfig(sizes.block_size, sizes.num_blocks, "float32")
    executor = ToyExecutor(toy_program(sizes.vocab_size, sizes.windows), limits, kv)
    shape = EngineShape(limits, kv)
    return Engine(config, executor, shape, drafter=drafter, clock=clock), executor


@dataclass
class Outcome:
    """All that was heard of one request."""

    tokens: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # of the prompt's tokens after the first
    reason: FinishReason | None = None
    last: WireEvent | None = None


class Driver:
    """Steps an engine, checks it after every step, and keeps each request's outcome."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outcomes: dict[str, Outcome] = {}

    def submit(self, request: Request) -> None:
        self.outcomes[request.request_id] = Outcome()
        self.engine.submit(request)

    def step(self) -> None:
        events = self.engine.step()
        self.engine.scheduler.check()
        self.take(events)

    def take(self, events: list[WireEvent]) -> None:
        for event in events:
            outcome = self.outcomes[event.request_id]
            assert outcome.reason is None, "an event after the terminal event"
            outcome.tokens += event.tokens
            outcome.hashes += event.hashes
            if event.prompt_logprobs is not None:
                assert event.prompt_logprobs.start == len(outcome.scores) + 1
                assert not outcome.tokens, "a prompt's scores after its answer began"
                outcome.scores += array("f", event.prompt_logprobs.logprobs)
            outcome.reason, outcome.last = event.finish_reason, event

    def run(
        self, max_steps: int = 100_000, before_step: Callable[[int], None] | None = None
    ) -> None:
        """Until there is no work."""
        for number in range(max_steps):
            if not self.engine.has_work:
                self.engine.check_when_idle()
                return
            if before_step is not None:
                before_step(number)
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps")


def start(config: EngineConfig, report: Callable[[str, int, int], None]) -> StartedEngine:
    """A start-up for the engine process: a toy engine with the sizes of `config`."""
    report("weights", 1, 2)
    report("weights", 2, 2)
    scheduler = config.scheduler
    max_model_len = config.model.max_model_len or 256
    rows = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    limits = StepLimits(scheduler.max_num_batched_tokens, rows, rows, max_model_len)
    num_blocks = rows * -(-max_model_len // config.cache.block_size)
    kv = KvConfig(config.cache.block_size, (num_blocks,), "float32")
    executor = _failing_executor(config, limits, kv)
    if config.model.path.startswith("writes "):
        threading.Thread(target=_write, args=(config.model.path.partition(" ")[2],)).start()
    resolved = Resolved("toy", "Toy", "float32", max_model_len, 97, ())
    ready = Ready(resolved, executor.info, ("toy: nothing",), {"python": 0.1})
    return StartedEngine(Engine(config, executor, EngineShape(limits, kv)), ready)


def _write(path: str) -> None:
    """Longer than a front end waits for an engine that has closed its socket."""
    time.sleep(3.0)
    Path(path).write_text("whole", encoding="utf-8")


def _failing_executor(config: EngineConfig, limits: StepLimits, kv: KvConfig) -> ToyExecutor:
    """A toy executor; the model's path may ask for trouble."""
    from hearth.core.errors import CapacityError, KernelError

    if config.model.path == "too-large":
        raise CapacityError("the toy needs 2 GiB, 1 GiB free", hint="buy memory")
    if config.model.path == "bug":
        raise ZeroDivisionError("a bug")

    class Executor(ToyExecutor):
        def execute(self, plan):  # type: ignore[no-untyped-def]
            if config.model.path == "slow":
                time.sleep(0.01)
            if config.model.path == "kernel-error" and 13 in plan.tokens.tolist():
                self.fail_next = KernelError("13 is not liked")
            if config.model.path == "crash" and 13 in plan.tokens.tolist():
                self.fail_next = ZeroDivisionError("a bug in a step")
            return super().execute(plan)

    return Executor(toy_program(), limits, kv)
