"""Executors in torch: one step from plan to result, and the plain interpreter of step programs.

Everything is checked, nothing is fast. Logits of a row may differ in their last bits with its
batch company (torch's matrix product does), so `info.bit_identical` is False.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.step import (
    ExecutorInfo,
    KvConfig,
    StepLimits,
    StepPlan,
    StepResult,
)
from hearth.kernels.plan_check import check_plan, check_tokens
from hearth.kernels.reference.forward import forward
from hearth.kernels.reference.kv import GroupTables, PagedKv, SequenceRows, StepTensors
from hearth.kernels.reference.sampling import sample_rows
from hearth.kernels.reference.weights import ReferenceWeights


class TorchExecutor(ABC):
    """An `Executor` whose forward pass is torch code. Owns the paged KV cache.

    A subclass says what it is and computes the logits; plan, sampling and result are alike.
    """

    def __init__(
        self, program: StepProgram, limits: StepLimits, kv: KvConfig, device: str = "cpu"
    ) -> None:
        self._program = program
        self._kv_config = kv
        self._limits = limits
        self._device = device
        self._kv = PagedKv(program.kv_groups, kv, device)
        self._previous: NDArray[np.int32] = np.zeros(0, np.int32)
        self._is_closed = False

    @property
    def program(self) -> StepProgram:
        """The program that it runs."""
        return self._program

    @property
    @abstractmethod
    def info(self) -> ExecutorInfo:
        """What runs the steps, and why."""

    @abstractmethod
    def _logits(self, step: StepTensors) -> torch.Tensor:
        """Raw logits of the wanted rows, [R, vocabulary]; stores keys and values in `_kv`."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step. Raises KernelError when the plan contradicts itself or the limits."""
        if self._is_closed:
            raise KernelError("the executor is closed")
        check_plan(plan, self._program, self._kv_config, self._limits)
        tokens = resolve_tokens(plan.tokens, self._previous, self._program.vocab_size)
        for group, source, target in plan.copies.tolist():
            self._kv.copy_block(group, source, target)
        with torch.no_grad():
            step = step_tensors(plan, tokens, len(self._program.kv_groups), self._device)
            raw = self._logits(step)
        logits = raw.float().cpu().numpy()
        sampled = sample_rows(logits, plan.sampling)
        self._previous = sampled.tokens.copy()
        return StepResult(
            tokens=sampled.tokens,
            logprobs=sampled.logprobs,
            hashes=hash_rows(logits) if plan.want_hashes else None,
            logits=logits if plan.want_logits else None,
            top_tokens=sampled.top_tokens,
            top_logprobs=sampled.top_logprobs,
            ranks=sampled.ranks,
        )

    def close(self) -> None:
        """Releases the KV cache; a subclass releases its weights too."""
        self._kv = PagedKv((), self._kv_config)
        self._is_closed = True


class ReferenceExecutor(TorchExecutor):
    """Runs step programs operation by operation; shares the weights with who made them."""

    def __init__(
        self, program: StepProgram, weights: ReferenceWeights, limits: StepLimits, kv: KvConfig
    ) -> None:
        super().__init__(program, limits, kv)
        self._weights: ReferenceWeights | None = weights

    @property
    def info(self) -> ExecutorInfo:
        """What runs the steps, and why."""
        return ExecutorInfo(
            name="reference",
            detail=f"torch {torch.__version__}, {torch.get_num_threads()} threads",
            reason="plain torch operations: correct, slow, not bit-identical over batches",
            bit_identical=False,
        )

    def _logits(self, step: StepTensors) -> torch.Tensor:
        assert self._weights is not None
        return forward(self._program, self._weights, step, self._kv)

    def close(self) -> None:
        """Releases the KV cache and the weights."""
        super().close()
        self._weights = None


def resolve_tokens(
    tokens: NDArray[np.int32], previous: NDArray[np.int32], vocab_size: int
) -> NDArray[np.int32]:
    """Token ids ≥ 0: −(1+r) becomes the token of row r of the step before. Raises KernelError."""
    check_tokens(tokens, previous.shape[0], vocab_size)
    rows = -1 - tokens
    resolved = tokens.copy()
    resolved[tokens < 0] = previous[rows[tokens < 0]]
    return resolved


def step_tensors(
    plan: StepPlan, tokens: NDArray[np.int32], num_groups: int, device: str = "cpu"
) -> StepTensors:
    """A plan as torch tensors; copies, keeps no reference to the plan."""
    starts, context = plan.row_start.tolist(), plan.context.tolist()
    sequences = tuple(
        SequenceRows(first, last, cached)
        for first, last, cached in zip(starts[:-1], starts[1:], context)
    )
    feature_rows, features = _features(plan, device)
    return StepTensors(
        tokens=_indices(tokens, device),
        positions=_indices(plan.positions, device),
        sequences=sequences,
        logit_rows=_indices(plan.logit_rows, device),
        groups=tuple(_tables(plan, group, device) for group in range(num_groups)),
        feature_rows=feature_rows,
        features=features,
    )


def _features(plan: StepPlan, device: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The encoder's rows of a plan: where they stand, and what they are."""
    if not len(plan.encoder):
        return None, None
    rows = [plan.features[number][index] for _, number, index in plan.encoder.tolist()]
    values = torch.from_numpy(np.stack(rows)).to(device)
    return _indices(plan.encoder[:, 0], device), values


def hash_rows(logits: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's bits, [R]."""
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in logits]
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def _tables(plan: StepPlan, group: int, device: str) -> GroupTables:
    starts = plan.block_start[group].tolist()
    return GroupTables(
        slots=_indices(plan.slots[group], device),
        blocks=tuple(_indices(plan.blocks[a:b], device) for a, b in pairwise(starts)),
        first_block=tuple(plan.first_block[group].tolist()),
    )


def _indices(values: NDArray[np.int32], device: str) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
