"""What steps of a program cost: bytes that are read and operations, by the precision of weights.

Pure arithmetic on the program that an executor runs, not on a configuration. Norms, rotations and
sampling are small beside it; what they take shows in the speeds that are measured with them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hearth.core.program import Attend, BufferRows, Experts, Linear, Op, StepProgram
from hearth.core.spec import KvDType, QuantSpec, WeightSlot
from hearth.kernels.packing import kv_head_bytes, matrix_bytes, packed_bytes


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Packed bytes of the matrices of one precision, each read once a step.

    `token_bytes`: those that every token is multiplied with; `wanted_bytes`: those that the tokens
    alone need whose logits are wanted (the head, and the last layer behind its keys and values).
    """

    precision: str
    token_bytes: int
    wanted_bytes: int


@dataclass(frozen=True, slots=True)
class ExpertCost:
    """Layers with experts: a token is multiplied with `top_k` of `num_experts`."""

    precision: str
    num_layers: int
    num_experts: int
    top_k: int
    expert_bytes: int  # of one expert of one layer

    def touched(self, num_rows: int) -> float:
        """Experts of a layer that some row is multiplied with, of rows that choose at random."""
        share = self.top_k / self.num_experts
        return self.num_experts * (1 - (1 - share) ** num_rows)


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """What a step reads and computes.

    `attend_flops`: operations for a query and one key in all layers but the last, and
    `wanted_attend_flops` in the last, whose queries are those of wanted rows; a layer with a window
    counts as one that sees everything. `kv_bytes`: of a token's keys and values in all layers.
    """

    linears: tuple[LinearCost, ...]
    experts: tuple[ExpertCost, ...]
    attend_flops: int
    wanted_attend_flops: int
    kv_bytes: int
    num_layers: int = 0

    @property
    def read_bytes(self) -> int:
        """Weights that a step of one row reads."""
        linear = sum(cost.token_bytes + cost.wanted_bytes for cost in self.linears)
        return linear + sum(c.num_layers * c.top_k * c.expert_bytes for c in self.experts)


def precision_of(quant: QuantSpec) -> str:
    """Such as "int4", "int8 with float32 rows", "fp8" or "bfloat16"."""
    is_plain = not quant.bits or quant.is_float or quant.int8_rows
    return quant.storage + ("" if is_plain else " with float32 rows")


def program_cost(program: StepProgram, kv_dtype: KvDType = KvDType.BFLOAT16) -> ProgramCost:
    """Of a decoder's program, or of an encoder's."""
    slots = {slot.name: slot for slot in program.slots}
    token_bytes, wanted_bytes = defaultdict[str, int](int), defaultdict[str, int](int)
    for op in program.ops:
        if not isinstance(op, Linear):
            continue
        is_wanted = program.buffers[op.out].rows is BufferRows.LOGITS
        into = wanted_bytes if is_wanted else token_bytes
        into[precision_of(slots[op.weight].quant)] += packed_bytes(slots[op.weight])
    attends = [op for op in program.ops if isinstance(op, Attend)]
    flops = [4 * op.num_heads * op.head_dim for op in attends]
    return ProgramCost(
        linears=tuple(
            LinearCost(name, token_bytes[name], wanted_bytes[name])
            for name in sorted({*token_bytes, *wanted_bytes})
        ),
        experts=_expert_costs(program.ops, slots),
        attend_flops=sum(flops[:-1]),
        wanted_attend_flops=flops[-1] if flops else 0,
        kv_bytes=sum(op.num_kv_heads * kv_head_bytes(op.head_dim, kv_dtype) for op in attends),
        num_layers=len(attends),
    )


def _expert_costs(ops: tuple[Op, ...], slots: dict[str, WeightSlot]) -> tuple[ExpertCost, ...]:
    layers = defaultdict[ExpertCost, int](int)
    for op in ops:
        if not isinstance(op, Experts):
            continue
        gate_up, down = slots[op.gate_up], slots[op.down]
        num_bytes = matrix_bytes(gate_up) + matrix_bytes(down)
        name = precision_of(down.quant)
        layers[ExpertCost(name, 1, down.stack, op.router.top_k, num_bytes)] += 1
    return tuple(
        ExpertCost(cost.precision, count, cost.num_experts, cost.top_k, cost.expert_bytes)
        for cost, count in layers.items()
    )
