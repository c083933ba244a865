"""A program bound to its weights, its buffers and its kernels: what a step launches, in order.

Everything is allocated here, once: a buffer of every kind of row, in the type that `patterns`
gives it. A launch takes a step's tensors and works on the first rows of the buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from hearth.core.errors import CapacityError
from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    Embed,
    Experts,
    Gate,
    HeadNorm,
    KvWrite,
    Linear,
    Norm,
    Op,
    Rope,
    Sample,
    Select,
    SoftCap,
    StepProgram,
)
from hearth.core.spec import SlotKind
from hearth.core.step import StepLimits
from hearth.kernels.reference.weights import torch_dtype
from hearth.kernels.triton.kernels import Kernels
from hearth.kernels.triton.memory import attention_floats, buffer_dtypes
from hearth.kernels.triton.patterns import (
    LaunchKind,
    LaunchSpec,
    attended_width,
    is_by_token,
    match_launches,
    unused_buffers,
)
from hearth.kernels.triton.plan_buffer import StepTensors
from hearth.kernels.triton.weights import TritonWeights

Run: TypeAlias = Callable[[StepTensors], None]
_Kind = TypeVar("_Kind", bound=Op)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a step, what it stands for, and why."""

    spec: LaunchSpec
    run: Run


class BoundProgram:
    """`run` computes a step's logits."""

    def __init__(
        self,
        program: StepProgram,
        weights: TritonWeights,
        limits: StepLimits,
        kernels: Kernels,
        cache: Any,
    ) -> None:
        """Raises CapacityError where the device has no room, KernelError for an operation."""
        self.specs = match_launches(program)
        self._program = program
        self._weights = weights
        self._kernels = kernels
        self._cache = cache
        self._buffers = _allocate(program, self.specs, weights, limits)
        width = attended_width(program, self.specs)
        dtype = torch_dtype(weights.dtype)
        self._attended = torch.empty((limits.max_tokens, width), dtype=dtype, device=weights.device)
        self._scratch = torch.empty(
            scratch_floats(program, limits, kernels), dtype=torch.float32, device=weights.device
        )
        self._counters = torch.zeros(kernels.num_counters, dtype=torch.int32, device=weights.device)
        kv_heads = max((group.num_kv_heads for group in program.kv_groups), default=0)
        self._attention_counters = torch.zeros(
            limits.max_sequences * kv_heads, dtype=torch.int32, device=weights.device
        )
        self._attention_scratch = torch.empty(
            attention_floats(program, limits), dtype=torch.float32, device=weights.device
        )
        self.launches = tuple(Launch(spec, self._bind(spec)) for spec in self.specs)
        sample = next(op for op in program.ops if isinstance(op, Sample))
        self._logits = sample.logits

    def run(self, step: StepTensors) -> torch.Tensor:
        """The raw logits, [R, vocabulary] float32, valid until the next step."""
        for launch in self.launches:
            launch.run(step)
        return self._rows(self._logits, step)

    def logits(self, step: StepTensors) -> torch.Tensor:
        """Where `run` leaves them."""
        return self._rows(self._logits, step)

    def _rows(self, buffer: int, step: StepTensors) -> torch.Tensor:
        by_token = is_by_token(self._program, buffer)
        return self._buffers[buffer][: step.num_rows if by_token else step.num_wanted]

    def _bind(self, spec: LaunchSpec) -> Run:
        ops = self._program.ops[spec.first : spec.first + spec.count]
        binders: dict[LaunchKind, Callable[[Sequence[Op]], Run]] = {
            LaunchKind.EMBED: self._embed,
            LaunchKind.ANGLES: self._angles,
            LaunchKind.NORM: self._norm,
            LaunchKind.ADD_NORM: self._norm,
            LaunchKind.ADD: self._add,
            LaunchKind.LINEAR: self._linear,
            LaunchKind.GATED_LINEAR: self._gated_linear,
            LaunchKind.ROPE_WRITE: self._rope_write,
            LaunchKind.ATTEND: self._attend,
            LaunchKind.ATTEND_WANTED: self._attend_wanted,
            LaunchKind.GATE: self._gate,
            LaunchKind.ACTIVATE: self._activate,
            LaunchKind.EXPERTS: self._experts,
            LaunchKind.SELECT: self._select,
            LaunchKind.SOFT_CAP: self._soft_cap,
        }
        return binders[spec.kind](ops)

    def _embed(self, ops: Sequence[Op]) -> Run:
        op = _only(ops, Embed)
        table, embed = self._weights.matrix(op.table), self._kernels.embed

        def run(step: StepTensors) -> None:
            out = self._rows(op.out, step)
            embed(table, step.tokens, out, op.scale, step.feature_rows, step.features)

        return run

    def _angles(self, ops: Sequence[Op]) -> Run:
        op, angles = _only(ops, Angles), self._kernels.angles
        return lambda step: angles(step.positions, op.rope, self._rows(op.out, step))

    def _norm(self, ops: Sequence[Op]) -> Run:
        op, norm = _only(ops[-1:], Norm), self._kernels.norm
        added = _only(ops[:1], Add).y if len(ops) > 1 else None
        weight = self._weights.vector(op.weight)
        bias = None if op.bias is None else self._weights.vector(op.bias)

        def run(step: StepTensors) -> None:
            x, out = self._rows(op.x, step), self._rows(op.out, step)
            add = None if added is None else self._rows(added, step)
            norm(x, weight, op.eps, out, add=add, bias=bias, centered=op.centered)

        return run

    def _add(self, ops: Sequence[Op]) -> Run:
        op = _only(ops, Add)

        def run(step: StepTensors) -> None:
            self._rows(op.x, step).add_(self._rows(op.y, step))

        return run

    def _linear(self, ops: Sequence[Op]) -> Run:
        op, linear = _only(ops, Linear), self._kernels.linear
        weight = self._weights.matrix(op.weight)
        bias = None if op.bias is None else self._weights.vector(op.bias)

        def run(step: StepTensors) -> None:
            x, out = self._rows(op.x, step), self._rows(op.out, step)
            linear(x, weight, out, bias=bias, scratch=self._scratch, counters=self._counters)

        return run

    def _gated_linear(self, ops: Sequence[Op]) -> Run:
        op, gate = _only(ops[:1], Linear), _only(ops[1:], Gate)
        gated_linear, weight = self._kernels.gated_linear, self._weights.matrix(op.weight)
        bias = None if op.bias is None else self._weights.vector(op.bias)

        def run(step: StepTensors) -> None:
            gated_linear(
                self._rows(op.x, step),
                weight,
                self._rows(gate.out, step),
                gate.activation,
                bias=bias,
                scratch=self._scratch,
                counters=self._counters,
            )

        return run

    def _rope_write(self, ops: Sequence[Op]) -> Run:
        write = _only(ops[-1:], KvWrite)
        rope = next((op for op in ops if isinstance(op, Rope)), None)
        head = next((op for op in ops if isinstance(op, HeadNorm)), None)
        norms: dict[str, object] = {}
        if head is not None:
            q_norm, k_norm = (self._weights.vector(w) for w in (head.q_weight, head.k_weight))
            norms = {"q_norm": q_norm, "k_norm": k_norm, "eps": head.eps}
        rope_and_write = self._kernels.rope_and_write

        def run(step: StepTensors) -> None:
            rope_and_write(
                self._rows(write.qkv, step),
                None if rope is None else self._rows(rope.angles, step),
                step.slots[write.group],
                self._cache,
                write.group,
                write.layer,
                write.num_heads,
                write.num_kv_heads,
                write.head_dim,
                None if rope is None else rope.rope,
                **norms,
            )

        return run

    def _attend(self, ops: Sequence[Op]) -> Run:
        op = _only(ops, Attend)

        def run(step: StepTensors) -> None:
            self._attend_rows(op, self._rows(op.qkv, step), self._rows(op.out, step), step)

        return run

    def _attend_wanted(self, ops: Sequence[Op]) -> Run:
        """All rows attend; where not all are wanted, those that are, are taken."""
        chosen, op = _only(ops[:1], Select), _only(ops[1:], Attend)
        select, width = self._kernels.select, self._program.buffers[op.out].width

        def run(step: StepTensors) -> None:
            qkv, out = self._rows(chosen.x, step), self._rows(op.out, step)
            if step.wants_all:
                self._attend_rows(op, qkv, out, step)
            elif step.num_wanted:
                attended = self._attended.view(-1)[: step.num_rows * width].view(-1, width)
                self._attend_rows(op, qkv, attended, step)
                select(attended, step.logit_rows, out)

        return run

    def _attend_rows(
        self, op: Attend, qkv: torch.Tensor, out: torch.Tensor, step: StepTensors
    ) -> None:
        self._kernels.attend(
            qkv,
            out,
            self._cache,
            op.group,
            op.layer,
            step.tables[op.group],
            num_heads=op.num_heads,
            num_kv_heads=op.num_kv_heads,
            head_dim=op.head_dim,
            scale=op.scale,
            window=op.window,
            soft_cap=op.soft_cap,
            is_decode=step.is_decode,
            scratch=self._attention_scratch,
            counters=self._attention_counters,
        )

    def _gate(self, ops: Sequence[Op]) -> Run:
        op, gate = _only(ops, Gate), self._kernels.gate
        return lambda step: gate(self._rows(op.x, step), self._rows(op.out, step), op.activation)

    def _activate(self, ops: Sequence[Op]) -> Run:
        op, activate = _only(ops, Activate), self._kernels.activate
        return lambda step: activate(self._rows(op.x, step), op.activation)

    def _experts(self, ops: Sequence[Op]) -> Run:
        op, experts, router = _only(ops, Experts), self._kernels.experts, None
        router = op.router
        bias = None if router.bias is None else self._weights.vector(router.bias)
        gate_up, down = self._weights.matrix(op.gate_up), self._weights.matrix(op.down)

        def run(step: StepTensors) -> None:
            x, logits, out = (self._rows(b, step) for b in (op.x, op.logits, op.out))
            experts(x, logits, out, router, bias, gate_up, down, op.activation)

        return run

    def _select(self, ops: Sequence[Op]) -> Run:
        op, select = _only(ops, Select), self._kernels.select
        return lambda step: select(
            self._rows(op.x, step), step.logit_rows, self._rows(op.out, step)
        )

    def _soft_cap(self, ops: Sequence[Op]) -> Run:
        op, soft_cap = _only(ops, SoftCap), self._kernels.soft_cap
        return lambda step: soft_cap(self._rows(op.x, step), op.cap)


def scratch_floats(program: StepProgram, limits: StepLimits, kernels: Kernels) -> int:
    """What linear layers ask for between their kernels; one at a time."""
    shapes = {
        (slot.rows, slot.cols)
        for slot in program.slots
        if slot.kind is SlotKind.LINEAR and slot.stack == 1
    }
    return max((kernels.scratch_floats(limits.max_tokens, *shape) for shape in shapes), default=0)


def _only(ops: Sequence[Op], kind: type[_Kind]) -> _Kind:
    """The one operation of a kind, as the pattern says."""
    (op,) = ops
    assert isinstance(op, kind)
    return op


def _allocate(
    program: StepProgram,
    specs: tuple[LaunchSpec, ...],
    weights: TritonWeights,
    limits: StepLimits,
) -> dict[int, torch.Tensor]:
    """Zeroed buffers by number, but for those that no launch uses. Raises CapacityError."""
    unused = unused_buffers(program, specs)
    buffers: dict[int, torch.Tensor] = {}
    try:
        for i, dtype in enumerate(buffer_dtypes(program, weights.dtype)):
            if i not in unused:
                rows = limits.max_tokens if is_by_token(program, i) else limits.max_logit_rows
                shape = (rows, program.buffers[i].width)
                buffers[i] = torch.zeros(shape, dtype=torch_dtype(dtype), device=weights.device)
    except torch.OutOfMemoryError as error:
        message = f"no memory on {weights.device} for the buffers of {limits.max_tokens:,} tokens"
        raise CapacityError(message, hint="lower --max-num-batched-tokens") from error
    return buffers
