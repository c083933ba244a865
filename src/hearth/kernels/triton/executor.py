"""The executor for NVIDIA GPUs; on the CPU, for tests, through the same code.

A step: the plan is checked on the host and copied to the device in one piece, blocks of the KV
cache are copied, the program's launches run (from a CUDA graph where there is one), tokens are
sampled, and one piece comes back, which is the only thing that is waited for. Tokens that refer to
the step before are looked up on the device.

Owns the KV cache, the buffers and the graphs; the weights are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hearth.core.errors import CapacityError, KernelError
from hearth.core.program import StepProgram
from hearth.core.spec import KvDType
from hearth.core.step import ExecutorInfo, KvConfig, StepLimits, StepPlan, StepResult
from hearth.kernels.plan_check import check_plan, check_tokens
from hearth.kernels.reference.executor import hash_rows
from hearth.kernels.triton.graphs import Graph, GraphBook, graph_sizes
from hearth.kernels.triton.kernels import Kernels
from hearth.kernels.triton.launches import BoundProgram, Launch
from hearth.kernels.triton.plan_buffer import (
    PlanBuffer,
    SamplingTensors,
    StepTensors,
    has_single_rows,
    wants_every_row,
)
from hearth.kernels.triton.plan_layout import PlanSizes
from hearth.kernels.triton.sampling import SampledTensors, Wanted, edit_tensors, sample
from hearth.kernels.triton.weights import TritonWeights

_NO_CARD = "there are no graphs without a GPU"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where the executor runs, with which kernels, and why."""

    device: torch.device
    kernels: Kernels
    reason: str
    uses_graphs: bool = True


class TritonExecutor:
    """Runs a program on a device; see core.step.Executor."""

    def __init__(
        self,
        program: StepProgram,
        weights: TritonWeights,
        limits: StepLimits,
        kv: KvConfig,
        choice: DeviceChoice,
    ) -> None:
        """Allocates everything that steps use. Raises CapacityError, KernelError."""
        self._program = program
        self._limits = limits
        self._kv_config = kv
        self._choice = choice
        device = choice.device
        self._device = device
        weights.finish()
        try:
            self._cache = choice.kernels.make_cache(
                program.kv_groups, kv.num_blocks, kv.block_size, KvDType(kv.dtype), device
            )
        except torch.OutOfMemoryError as error:
            message = f"no memory on {device} for a KV cache of {kv.num_blocks} blocks"
            raise CapacityError(message, hint="lower --kv-cache-memory-bytes") from error
        self._bound: BoundProgram | None = BoundProgram(
            program, weights, limits, choice.kernels, self._cache
        )
        rows = min(limits.max_sequences, limits.max_logit_rows, limits.max_tokens)
        sizes = PlanSizes.of(limits, program, kv.block_size)
        self._plans = PlanBuffer(sizes, rows, device)
        self._previous = torch.zeros(limits.max_logit_rows, dtype=torch.int32, device=device)
        self._num_previous = 0
        self._results = _ResultBuffer(device)
        self._loaded: StepTensors | None = None  # of the step at hand, for a capture
        uses_graphs = choice.uses_graphs and device.type == "cuda"
        self._pool: Any = None  # memory that graphs share
        self._graphs = GraphBook(
            graph_sizes(rows),
            self._capture if uses_graphs else None,
            _NO_CARD if device.type != "cuda" else "graphs are switched off",
        )
        self._info = ExecutorInfo(
            name="triton",
            detail=f"{_device_name(device)}, {choice.kernels.name}, {weights.dtype}",
            reason=choice.reason,
            bit_identical=choice.kernels.name == "triton",
        )

    @property
    def program(self) -> StepProgram:
        """The program that it runs."""
        return self._program

    @property
    def info(self) -> ExecutorInfo:
        """The device and its kernels, and why."""
        return self._info

    @property
    def launches(self) -> tuple[Launch, ...]:
        """What a step launches, and why."""
        return () if self._bound is None else self._bound.launches

    @property
    def graphs(self) -> GraphBook:
        """Which steps are replayed, and why others are not."""
        return self._graphs

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step. Raises KernelError when the plan contradicts itself or the limits."""
        if self._bound is None:
            raise KernelError("the executor is closed")
        check_plan(plan, self._program, self._kv_config, self._limits)
        check_tokens(plan.tokens, self._num_previous, self._program.vocab_size)
        with torch.inference_mode():
            return self._execute(plan, self._bound)

    def close(self) -> None:
        """Releases the graphs, the buffers and the KV cache; a second call does nothing."""
        self._graphs.clear()
        self._bound = self._cache = self._loaded = self._pool = None

    def _execute(self, plan: StepPlan, bound: BoundProgram) -> StepResult:
        for group, source, target in plan.copies.tolist():
            self._cache.copy_block(group, source, target)
        num_wanted = plan.logit_rows.shape[0]
        if plan.tokens.shape[0]:
            route = self._graphs.route(
                plan, is_decode=has_single_rows(plan), wants_all=wants_every_row(plan)
            )
            step = self._load(plan, route.rows)
            self._loaded = step
            self._graphs.run(route, lambda: self._forward(step))
            logits, sampling = bound.logits(step)[:num_wanted], step.sampling
        if not plan.tokens.shape[0] or not num_wanted:
            self._num_previous = 0
            self._wait()
            return _no_rows(plan, self._program.vocab_size)
        sampled = self._sample(logits, sampling.first(num_wanted), plan)
        self._previous[:num_wanted] = sampled.tokens
        self._num_previous = num_wanted
        raw = None
        if plan.want_hashes or plan.want_logits:  # the buffer is written again by the next step
            raw = logits.to("cpu", copy=True).numpy()
        return self._results.fetch(sampled, plan, raw)

    def _sample(self, logits: torch.Tensor, how: SamplingTensors, plan: StepPlan) -> SampledTensors:
        wanted, kernels = Wanted.of(plan.sampling), self._choice.kernels
        if kernels.sample_without_sort is not None and not wanted.needs_sort:
            return kernels.sample_without_sort(logits, how)
        edits = plan.sampling.edits
        moved = None if edits is None else edit_tensors(edits, self._device)
        return sample(logits, how, wanted, moved, kernels.uniforms)

    def _load(self, plan: StepPlan, rows: int | None) -> StepTensors:
        """The plan on the device, with the rows of an encoder."""
        if not len(plan.encoder):
            return self._plans.load(plan, rows)
        values = np.stack([plan.features[n][index] for _, n, index in plan.encoder.tolist()])
        places = plan.encoder[:, 0].astype(np.int32)
        features = torch.from_numpy(values).to(self._device, non_blocking=True)
        feature_rows = torch.from_numpy(places).to(self._device, non_blocking=True)
        return self._plans.load(plan, rows, feature_rows, features)

    def _forward(self, step: StepTensors) -> None:
        """Everything of a step up to its logits; what a graph captures."""
        assert self._bound is not None
        refers = step.tokens < 0
        rows = torch.where(refers, -1 - step.tokens, 0)
        step.tokens.copy_(torch.where(refers, self._previous[rows.long()], step.tokens))
        self._bound.run(step)

    def _capture(self, rows: int) -> Graph:
        """A graph of the step at hand, whose kernels have run before."""
        step = self._loaded
        assert step is not None
        assert step.num_rows == rows
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._forward(step)
        self._pool = graph.pool()
        return graph

    def _wait(self) -> None:
        """Until the device has read the plan: the next one is written in its place."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class _ResultBuffer:
    """What comes back of a step: one pinned piece of int32, floats as their bits."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._host = torch.zeros(0, dtype=torch.int32)

    def fetch(
        self, sampled: SampledTensors, plan: StepPlan, logits: NDArray[np.float32] | None
    ) -> StepResult:
        """Waits for the step and returns its result."""
        parts = {
            "tokens": sampled.tokens,
            "logprobs": sampled.logprobs,
            "ranks": sampled.ranks,
            "top_tokens": sampled.top_tokens,
            "top_logprobs": sampled.top_logprobs,
        }
        present = {name: part for name, part in parts.items() if part is not None}
        flat = torch.cat([part.reshape(-1).view(torch.int32) for part in present.values()])
        own = self._to_host(flat)
        arrays: dict[str, NDArray[Any]] = {}
        at = 0
        for name, part in present.items():
            values = own[at : at + part.numel()].reshape(tuple(part.shape))
            arrays[name] = values.view(np.float32) if part.is_floating_point() else values
            at += part.numel()
        return StepResult(
            tokens=arrays["tokens"],
            logprobs=arrays["logprobs"],
            hashes=None if logits is None or not plan.want_hashes else hash_rows(logits),
            logits=logits if plan.want_logits else None,
            top_tokens=arrays.get("top_tokens"),
            top_logprobs=arrays.get("top_logprobs"),
            ranks=arrays.get("ranks"),
        )

    def _to_host(self, flat: torch.Tensor) -> NDArray[np.int32]:
        """A copy that is the caller's."""
        if self._host.numel() < flat.numel():
            self._host = torch.zeros(2 * flat.numel(), dtype=torch.int32, pin_memory=self._is_cuda)
        self._host[: flat.numel()].copy_(flat, non_blocking=True)
        if self._is_cuda:
            torch.cuda.current_stream(flat.device).synchronize()
        copied: NDArray[np.int32] = self._host[: flat.numel()].numpy().copy()
        return copied


def _no_rows(plan: StepPlan, vocab_size: int) -> StepResult:
    """Of a step whose logits nobody wants."""
    none, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
    num_top = plan.sampling.num_top
    has_top = num_top > 0 and plan.sampling.num_logprobs is not None
    return StepResult(
        tokens=none,
        logprobs=floats,
        hashes=np.zeros(0, np.uint64) if plan.want_hashes else None,
        logits=np.zeros((0, vocab_size), np.float32) if plan.want_logits else None,
        top_tokens=none.reshape(0, num_top) if has_top else None,
        top_logprobs=floats.reshape(0, num_top) if has_top else None,
        ranks=None if plan.sampling.given is None else none,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
