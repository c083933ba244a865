"""Which operations of a program one launch serves, and why others have a launch of their own.

Pure: no torch. A `LaunchSpec` stands for operations first … first + count − 1. The one change of
order: where the last layer selects the q, k, v rows whose logits are wanted and attends with them
alone, all rows attend and their results are selected, since a kernel that walks over the rows of
sequences knows them by their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hearth.core.errors import KernelError
from hearth.core.program import (
    Activate,
    Add,
    Angles,
    Attend,
    BufferRows,
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
from hearth.kernels.fuse import access_of


class LaunchKind(StrEnum):
    """What a launch does."""

    EMBED = "embed"
    ANGLES = "angles"
    NORM = "norm"
    ADD_NORM = "add + norm"
    ADD = "add"
    LINEAR = "linear"
    GATED_LINEAR = "linear + gate"
    ROPE_WRITE = "rope + kv write"
    ATTEND = "attend"
    ATTEND_WANTED = "attend + select"
    GATE = "gate"
    ACTIVATE = "activate"
    EXPERTS = "experts"
    SELECT = "select"
    SOFT_CAP = "soft cap"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Operations that run as one launch, and why so many or so few."""

    kind: LaunchKind
    first: int
    count: int
    reason: str


_ALONE: dict[type[Op], LaunchKind] = {
    Embed: LaunchKind.EMBED,
    Angles: LaunchKind.ANGLES,
    Norm: LaunchKind.NORM,
    Linear: LaunchKind.LINEAR,
    Gate: LaunchKind.GATE,
    Activate: LaunchKind.ACTIVATE,
    Experts: LaunchKind.EXPERTS,
    SoftCap: LaunchKind.SOFT_CAP,
    Add: LaunchKind.ADD,
    Select: LaunchKind.SELECT,
    Attend: LaunchKind.ATTEND,
}
_REASONS = {
    LaunchKind.GATE: "no linear layer before it writes for it alone",
    LaunchKind.ADD: "no norm of the sum follows",
}


def match_launches(program: StepProgram) -> tuple[LaunchSpec, ...]:
    """The launches of a program up to its sampling, in order.

    Raises KernelError for an operation that the device does not run.
    """
    launches: list[LaunchSpec] = []
    at = 0
    while at < len(program.ops) and not isinstance(program.ops[at], Sample):
        launches.append(_match(program, at))
        at += launches[-1].count
    return tuple(launches)


def _match(program: StepProgram, at: int) -> LaunchSpec:
    op = program.ops[at]
    if isinstance(op, Add):
        return _add(program, at)
    if isinstance(op, HeadNorm | Rope | KvWrite):
        return _rope_write(program, at)
    if isinstance(op, Select):
        return _select(program, at)
    if isinstance(op, Linear) and _is_gated(program, at):
        reason = "a tile has the same columns of gate and up, which nothing else reads"
        return LaunchSpec(LaunchKind.GATED_LINEAR, at, 2, reason)
    kind = _ALONE.get(type(op))
    if kind is None:
        name = type(op).__name__
        hint = "--activations float32 keeps rows as floats" if name == "Quantize" else None
        raise KernelError(f"the GPU executor has no kernel for the operation {name}", hint=hint)
    return LaunchSpec(kind, at, 1, _REASONS.get(kind, "a kernel of its own"))


def _add(program: StepProgram, at: int) -> LaunchSpec:
    """A sum is part of the norm that follows it."""
    match program.ops[at : at + 2]:
        case (Add() as add, Norm() as norm) if norm.x == add.x:
            pass
        case _:
            return LaunchSpec(LaunchKind.ADD, at, 1, _REASONS[LaunchKind.ADD])
    # It may write to where the added rows were: a row is read before its norm is known.
    if norm.out == add.x:
        reason = "the norm replaces the sum"
        return LaunchSpec(LaunchKind.ADD, at, 1, reason)
    return LaunchSpec(LaunchKind.ADD_NORM, at, 2, "the norm reads the row that the sum writes")


def _rope_write(program: StepProgram, at: int) -> LaunchSpec:
    """Head norms, rotation and the KV write go over the same heads; either may be missing."""
    parts: list[Op] = []
    for kind in (HeadNorm, Rope, KvWrite):
        op = program.ops[at + len(parts)]
        if isinstance(op, kind):
            parts.append(op)
    write = parts[-1]
    if not isinstance(write, KvWrite) or not all(
        part.x == write.qkv
        and part.num_heads + (part.num_kv_heads if isinstance(part, HeadNorm) else 0)
        == write.num_heads + write.num_kv_heads
        for part in parts
        if isinstance(part, HeadNorm | Rope)
    ):
        raise KernelError(
            "the GPU executor norms and rotates heads where it stores them: a program whose head "
            "norms or rotation have no KV write of the same heads behind them has no kernel"
        )
    reason = "norms, rotation and KV write read the same heads"
    return LaunchSpec(LaunchKind.ROPE_WRITE, at, len(parts), reason)


def _is_gated(program: StepProgram, at: int) -> bool:
    """Whether a gate follows that is the only reader of what is written."""
    match program.ops[at : at + 2]:
        case (Linear() as linear, Gate() as gate) if gate.x == linear.out:
            pass
        case _:
            return False
    # A buffer is shared by layers: each must gate what its own linear layer has written.
    readers = [i for i, op in enumerate(program.ops) if linear.out in access_of(op).reads]
    return all(
        isinstance(program.ops[i], Gate)
        and isinstance(before := program.ops[i - 1], Linear)
        and before.out == linear.out
        for i in readers
    )


def _select(program: StepProgram, at: int) -> LaunchSpec:
    match program.ops[at : at + 2]:
        case (Select() as select, Attend() as attend) if attend.qkv == select.out:
            reason = "rows are known by their place in a sequence: all attend, then some are taken"
            return LaunchSpec(LaunchKind.ATTEND_WANTED, at, 2, reason)
    return LaunchSpec(LaunchKind.SELECT, at, 1, "a kernel of its own")


def wide_buffers(program: StepProgram) -> frozenset[int]:
    """Buffers of float32: residual stream and logits, and what norms and routers read.

    The others have the float type of the weights.
    """
    wide: set[int] = set()
    for op in program.ops:
        if isinstance(op, Embed | Angles):
            wide.add(op.out)
        elif isinstance(op, Add | Norm | SoftCap):
            wide.add(op.x)
        elif isinstance(op, Experts):
            wide |= {op.logits, op.routes}
        elif isinstance(op, Sample):
            wide.add(op.logits)
    wide |= {op.out for op in program.ops if isinstance(op, Select) and op.x in wide}
    return frozenset(wide)


def unused_buffers(program: StepProgram, launches: tuple[LaunchSpec, ...]) -> frozenset[int]:
    """Buffers that no launch reads or writes: what stays within one."""
    unused: set[int] = set()
    for launch in launches:
        op = program.ops[launch.first]
        if launch.kind is LaunchKind.ATTEND_WANTED and isinstance(op, Select):
            unused.add(op.out)
        if launch.kind is LaunchKind.GATED_LINEAR and isinstance(op, Linear):
            unused.add(op.out)
        if isinstance(op, Experts):
            unused |= {op.routes, op.gated}  # of the kernel's own
    return frozenset(unused)


def attended_width(program: StepProgram, launches: tuple[LaunchSpec, ...]) -> int:
    """Width of what all rows' attention is written to where some are taken; 0: there is none."""
    widths = [
        program.buffers[attend.out].width
        for launch in launches
        if launch.kind is LaunchKind.ATTEND_WANTED
        and isinstance(attend := program.ops[launch.first + 1], Attend)
    ]
    return max(widths, default=0)


def is_by_token(program: StepProgram, buffer: int) -> bool:
    """Whether a buffer has a row a token; else one a wanted logits row."""
    return program.buffers[buffer].rows is BufferRows.TOKENS
