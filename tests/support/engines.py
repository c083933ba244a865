"""The real engine around any executor, and an auditor that hashes every row it computes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
from hearth.engine.speculation.drafter import Drafter


@dataclass(frozen=True)
class EngineSizes:
    """What an engine is built with; `num_blocks` small enough forces preemption."""

    budget: int = 64
    max_num_seqs: int = 16
    num_blocks: int = 256
    block_size: int = 16
    prefix_caching: bool = True
    max_model_len: int = 512


def build_engine(executor: Executor, sizes: EngineSizes, drafter: Drafter | None = None) -> Engine:
    """An engine with a checked scheduler over an executor that was built for at least as much.

    With a drafter a step may have as many logits rows as tokens.
    """
    config = EngineConfig(
        ModelConfig("test"),
        CacheConfig(sizes.block_size, sizes.prefix_caching),
        SchedulerConfig(sizes.max_num_seqs, sizes.budget),
        debug_checks=True,
    )
    sequences = min(sizes.max_num_seqs, sizes.budget)
    rows = sequences if drafter is None else sizes.budget
    limits = StepLimits(sizes.budget, sequences, rows, sizes.max_model_len)
    num_blocks = (sizes.num_blocks,) * len(executor.program.kv_groups)
    kv = KvConfig(sizes.block_size, num_blocks, "float32")
    return Engine(config, executor, EngineShape(limits, kv), drafter=drafter)


class AuditExecutor:
    """Wraps an executor; wants the logits of all rows and files their hash by the row's context.

    Each slot of group 0 holds a hash of all tokens up to its own, chained from the slot before it
    through the plan's block table; so a `ledger` that several auditors share says whether the same
    context ever gave other bits, also where blocks behind a window are gone. (A window must be
    at least 2: the slot before a row's own is then still listed.)
    """

    def __init__(self, inner: Executor, kv: KvConfig, ledger: dict[bytes, int]) -> None:
        self._inner = inner
        self._block_size = kv.block_size
        self._memory: dict[int, bytes] = {}
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
        num_rows = len(plan.tokens)
        rows = np.arange(num_rows, dtype=np.int32)
        every_row = replace(
            plan, logit_rows=rows, sampling=_spread(plan, num_rows), want_hashes=True
        )
        result = self._inner.execute(every_row)
        assert result.hashes is not None
        for owner, context in enumerate(plan.context.tolist()):
            self._file_sequence(plan, owner, context, result.hashes)
        wanted = plan.logit_rows
        ranks = None if result.ranks is None else result.ranks[wanted]
        return StepResult(result.tokens[wanted], result.logprobs[wanted], ranks=ranks)

    def close(self) -> None:
        self._inner.close()

    def _file_sequence(
        self, plan: StepPlan, owner: int, context: int, hashes: NDArray[np.uint64]
    ) -> None:
        """Files the rows of one sequence, which continue `context` tokens."""
        before = self._memory[self._slot(plan, owner, context - 1)] if context else b""
        first, last = plan.row_start[owner : owner + 2].tolist()
        for row in range(first, last):
            token = int(plan.tokens[row])
            before = hashlib.sha256(before + token.to_bytes(4, "little")).digest()
            self._memory[int(plan.slots[0, row])] = before
            known = self._ledger.setdefault(before, int(hashes[row]))
            self.num_repeated += 1
            if known != int(hashes[row]):
                shape = f"{len(plan.context)} sequences, {len(plan.tokens)} rows"
                position = context + row - first
                self.differing.append(f"position {position}, row {row} of a step of {shape}")

    def _slot(self, plan: StepPlan, owner: int, position: int) -> int:
        """Where group 0 keeps the token at `position` of a sequence."""
        listed = position // self._block_size - int(plan.first_block[0, owner])
        assert listed >= 0
        block = int(plan.blocks[plan.block_start[0, owner] + listed])
        return block * self._block_size + position % self._block_size


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
        # Nobody wants the best tokens here: only their numbers are left out.
        np.minimum(at(sampling.num_logprobs, -1), 0) if sampling.num_logprobs is not None else None,
        given=None if sampling.given is None else at(sampling.given, -1),
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
