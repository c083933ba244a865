"""The real engine around any executor, and an auditor that hashes every row it computes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from hearth.core.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.program import StepProgram
from hearth.core.step import (
    Executor,
    ExecutorInfo,
    KvConfig,
    LogitEdits,
    SamplingArrays,
    StepLimits,
    StepPlan,
    StepResult,
)
from hearth.engine.engine import Engine, EngineShape


@dataclass(frozen=True)
class EngineSizes:
    """What an engine is built with; `num_blocks` small enough forces preemption."""

    budget: int = 64
    max_num_seqs: int = 16
    num_blocks: int = 256
    block_size: int = 16
    prefix_caching: bool = True
    max_model_len: int = 512


def build_engine(executor: Executor, sizes: EngineSizes) -> Engine:
    """An engine with a checked scheduler over an executor that was built for at least as much."""
    config = EngineConfig(
        ModelConfig("test"),
        CacheConfig(sizes.block_size, sizes.prefix_caching),
        SchedulerConfig(sizes.max_num_seqs, sizes.budget),
        debug_checks=True,
    )
    rows = min(sizes.max_num_seqs, sizes.budget)
    limits = StepLimits(sizes.budget, rows, rows, sizes.max_model_len)
    num_blocks = (sizes.num_blocks,) * len(executor.program.kv_groups)
    return Engine(
        config, executor, EngineShape(limits, KvConfig(sizes.block_size, num_blocks, "float32"))
    )


class AuditExecutor:
    """Wraps an executor; wants the logits of all rows and files their hash by the row's context.

    The context is kept as tokens in slots, and read back through the plan's block tables; so a
    `ledger` that several auditors share says whether the same context ever gave other bits.
    """

    def __init__(self, inner: Executor, kv: KvConfig, ledger: dict[bytes, int]) -> None:
        self._inner = inner
        self._block_size = kv.block_size
        self._memory = np.full(kv.num_blocks[0] * kv.block_size, -1, np.int64)
        self._ledger = ledger
        self.num_repeated = 0  # rows whose context was known already
        self.differing: list[str] = []

    @property
    def program(self) -> StepProgram:
        return self._inner.program

    @property
    def info(self) -> ExecutorInfo:
        return self._inner.info

    def execute(self, plan: StepPlan) -> StepResult:
        self._memory[plan.slots[0]] = plan.tokens
        num_rows = len(plan.tokens)
        rows = np.arange(num_rows, dtype=np.int32)
        every_row = replace(
            plan, logit_rows=rows, sampling=_spread(plan, num_rows), want_hashes=True
        )
        result = self._inner.execute(every_row)
        assert result.hashes is not None
        for row, digest in enumerate(result.hashes.tolist()):
            self._file(plan, row, digest)
        wanted = plan.logit_rows
        return StepResult(result.tokens[wanted], result.logprobs[wanted])

    def close(self) -> None:
        self._inner.close()

    def _file(self, plan: StepPlan, row: int, digest: int) -> None:
        owner = int(np.searchsorted(plan.row_start, row, side="right")) - 1
        position = int(plan.context[owner]) + row - int(plan.row_start[owner])
        indices = np.arange(position + 1)
        start = plan.block_start[0, owner]
        slots = plan.blocks[start + indices // self._block_size] * self._block_size
        context = self._memory[slots + indices % self._block_size]
        assert (context >= 0).all()
        key = hashlib.sha256(context.tobytes()).digest()
        known = self._ledger.setdefault(key, digest)
        self.num_repeated += 1
        if known != digest:
            shape = f"{len(plan.context)} sequences, {len(plan.tokens)} rows"
            self.differing.append(f"position {position}, row {row} of a step of {shape}")


def _spread(plan: StepPlan, num_rows: int) -> SamplingArrays:
    """The sampling of the wanted rows at their rows, greedy elsewhere."""
    sampling = plan.sampling
    wanted = plan.logit_rows

    def at(values: np.ndarray, default: float) -> np.ndarray:
        spread = np.full(num_rows, default, values.dtype)
        spread[wanted] = values
        return spread

    return SamplingArrays(
        at(sampling.temperature, 0),
        at(sampling.top_k, 0),
        at(sampling.top_p, 1),
        at(sampling.min_p, 0),
        at(sampling.seed, 0),
        at(sampling.position, 0),
        at(sampling.choice, 0),
        edits=None if sampling.edits is None else _spread_edits(sampling.edits, wanted, num_rows),
    )


def _spread_edits(edits: LogitEdits, wanted: np.ndarray, num_rows: int) -> LogitEdits:
    """The ragged rows of the wanted ones at their rows; `wanted` ascends."""

    def at(values: np.ndarray, default: float) -> np.ndarray:
        spread = np.full(num_rows, default, values.dtype)
        spread[wanted] = values
        return spread

    def starts(start: np.ndarray) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(at(np.diff(start), 0)))).astype(np.int32)

    return replace(
        edits,
        repetition=at(edits.repetition, 1),
        frequency=at(edits.frequency, 0),
        presence=at(edits.presence, 0),
        count_start=starts(edits.count_start),
        bias_start=starts(edits.bias_start),
    )
