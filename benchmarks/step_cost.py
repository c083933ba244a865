"""Fixed cost of a step outside the kernels: microseconds of scheduler, plan, commit and events.

    python benchmarks/step_cost.py [--steps 400]

An executor that answers at once stands in for the model. Decoding sequences with a 512-token
prompt, prefix cache on; the median over the steps, per phase and in all. Never asserts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from hearth.core.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.program import KvGroupSpec, StepProgram
from hearth.core.request import Request, SamplingParams
from hearth.core.step import ExecutorInfo, KvConfig, StepLimits, StepPlan, StepResult
from hearth.engine.engine import Engine, EngineShape
from hearth.engine.messages import Events, encode_frame

PROMPT_TOKENS = 512
MAX_MODEL_LEN = 4096
BLOCK_SIZE = 32


class InstantExecutor:
    """Answers every logits row with token 1."""

    program = StepProgram((), (), (), (KvGroupSpec(1, 1, 1),), 1000)
    info = ExecutorInfo("instant", "", "", bit_identical=True)

    def execute(self, plan: StepPlan) -> StepResult:
        """See core.step.Executor."""
        num_rows = len(plan.logit_rows)
        return StepResult(np.ones(num_rows, np.int32), np.zeros(num_rows, np.float32))

    def close(self) -> None:
        """Nothing to close."""


def build_engine(num_sequences: int, num_steps: int) -> Engine:
    """An engine whose sequences have all been prefilled and decode."""
    scheduler = SchedulerConfig(max(num_sequences, 1), 512)
    config = EngineConfig(ModelConfig(""), CacheConfig(BLOCK_SIZE), scheduler)
    limits = StepLimits(512, num_sequences, num_sequences, MAX_MODEL_LEN)
    kv = KvConfig(BLOCK_SIZE, (num_sequences * MAX_MODEL_LEN // BLOCK_SIZE,), "float32")
    engine = Engine(config, InstantExecutor(), EngineShape(limits, kv))
    for number in range(num_sequences):
        prompt = (number % 1000, *range(PROMPT_TOKENS - 1))
        sampling = SamplingParams(0.7, 0.9, 40, seed=number)
        stops = frozenset({2, 3})
        engine.submit(Request(f"chatcmpl-{number:032x}", prompt, num_steps + 8, sampling, stops))
    while engine.scheduler.num_waiting or engine.stats().num_computed_tokens < (
        num_sequences * PROMPT_TOKENS
    ):
        engine.step()
    return engine


def measure(num_sequences: int, num_steps: int) -> dict[str, float]:
    """Median microseconds of each phase."""
    engine = build_engine(num_sequences, num_steps)
    scheduler, builder, executor = engine.scheduler, engine._builder, engine._executor
    phases: dict[str, list[int]] = {}

    def lap(name: str, since: int) -> int:
        now = time.perf_counter_ns()
        phases.setdefault(name, []).append(now - since)
        return now

    for _ in range(num_steps // 2):
        begin = now = time.perf_counter_ns()
        decision = scheduler.plan()
        now = lap("plan", now)
        assert decision is not None
        plan = builder.build(decision)
        now = lap("build", now)
        result = executor.execute(plan)
        now = lap("(executor)", now)
        sampled = builder.distribute(decision, result.tokens.tolist())
        now = lap("distribute", now)
        scheduler.commit(decision, sampled)
        now = lap("commit", now)
        encode_frame(Events(scheduler.take_events()))
        lap("encode", now)
        lap("phases", begin)
    for _ in range(num_steps // 2):
        begin = time.perf_counter_ns()
        encode_frame(Events(engine.step()))
        lap("engine.step + encode", begin)
    return {name: statistics.median(times) / 1000 for name, times in phases.items()}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    for num_sequences in (1, 8, 32):
        costs = measure(num_sequences, options.steps)
        text = "  ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
        print(f"{num_sequences:3d} sequences, µs: {text}")


if __name__ == "__main__":
    main()
