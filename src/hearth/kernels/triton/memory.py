"""Bytes on the device, as pure arithmetic: weights, activations, plan and sampling.

KV blocks are those of `kv_layout`.
The memory plan and what is allocated use the same functions. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.core.program import Attend, StepProgram
from hearth.core.spec import DType, SlotKind, WeightSlot
from hearth.core.step import StepLimits
from hearth.core.units import MIB, ceil_div, round_up
from hearth.kernels.triton.layout import ROW_MULTIPLE, words_a_row
from hearth.kernels.triton.patterns import (
    attended_width,
    is_by_token,
    match_launches,
    unused_buffers,
    wide_buffers,
)
from hearth.kernels.triton.plan_layout import plan_bytes

ALIGNMENT = 256
# What sampling keeps for each logit: of rows that it sorts at once, values, their order, sums in
# float64 and masks; of all rows, an edited copy and comparisons with given tokens.
SORT_BYTES = 112
EDIT_BYTES = 8
SORTED_AT_ONCE = 4 << 20  # logits
STAGING_BYTES = 32 * MIB  # of one of the two pinned buffers that weights go through
# Graphs of decode steps share one pool; Triton's compiled kernels are loaded when first used.
# (Not measured on a card: docs/gpu-todo.md.)
GRAPH_BYTES = 256 * MIB
_SEGMENT_KEYS = 256
MOST_ATTENTION_FLOATS = 8 << 20


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """Where the parts of a slot lie in the arena of weights; −1: there is no such part.

    `data`: dense elements, or codes.
    """

    data: int
    scales: int = -1
    zeros: int = -1


@dataclass(frozen=True, slots=True)
class SlotBytes:
    """Bytes of the parts of a slot."""

    data: int
    scales: int = 0
    zeros: int = 0


def slot_bytes(slot: WeightSlot, dtype: DType) -> SlotBytes:
    """Of a slot whose dense elements are kept as `dtype`, without alignment; see layout.py."""
    if slot.kind is SlotKind.VECTOR:
        return SlotBytes(slot.rows * 4)
    rows, quant = slot.total_rows, slot.quant
    if not quant.bits:
        return SlotBytes(round_up(rows, ROW_MULTIPLE) * slot.cols * dtype.num_bytes)
    groups = ceil_div(slot.cols, quant.group_size)
    codes = rows * (4 * words_a_row(slot.cols) if quant.bits == 4 else slot.cols)
    return SlotBytes(codes, groups * rows * 4, 0 if quant.symmetric else groups * rows)


def weight_places(slots: Sequence[WeightSlot], dtype: DType) -> tuple[dict[str, SlotPlace], int]:
    """Where each slot lies in one arena, and the arena's bytes."""
    places: dict[str, SlotPlace] = {}
    offset = 0
    for slot in slots:
        parts = []
        size = slot_bytes(slot, dtype)
        for num_bytes in (size.data, size.scales, size.zeros):
            parts.append(offset if num_bytes else -1)
            offset += round_up(num_bytes, ALIGNMENT)
        places[slot.name] = SlotPlace(*parts)
    return places, max(offset, ALIGNMENT)


def weight_bytes(slots: Sequence[WeightSlot], dtype: DType) -> int:
    """Of the arena of all slots."""
    return weight_places(slots, dtype)[1]


def buffer_dtypes(program: StepProgram, dtype: DType) -> tuple[DType, ...]:
    """The element type of every buffer where weights are of `dtype`."""
    wide = wide_buffers(program)
    return tuple(DType.FLOAT32 if i in wide else dtype for i in range(len(program.buffers)))


def activation_bytes(program: StepProgram, limits: StepLimits, dtype: DType) -> int:
    """Of all buffers of a program."""
    launches = match_launches(program)
    unused = unused_buffers(program, launches)
    total = round_up(
        attended_width(program, launches) * limits.max_tokens * dtype.num_bytes, ALIGNMENT
    )
    for i, (buffer, element) in enumerate(zip(program.buffers, buffer_dtypes(program, dtype))):
        if i in unused:
            continue
        rows = limits.max_tokens if is_by_token(program, i) else limits.max_logit_rows
        total += round_up(rows * buffer.width * element.num_bytes, ALIGNMENT)
    return total


def attention_floats(program: StepProgram, limits: StepLimits) -> int:
    """What attention that splits the keys of decode steps keeps of its parts, at most.

    With less room kernels split less and are slower, with the same results; so there is a bound.
    """
    most = 0
    for group in program.kv_groups:
        heads = max(
            (op.num_heads for op in program.ops if isinstance(op, Attend)),
            default=group.num_kv_heads,
        )
        segments = limits.max_sequences * (limits.max_model_len // _SEGMENT_KEYS + 2)
        width = 1 << max(4, (group.head_dim - 1).bit_length())
        most = max(most, segments * heads * (width + 2))
    return min(most, MOST_ATTENTION_FLOATS)


def scratch_bytes(program: StepProgram, limits: StepLimits, dtype: DType, block_size: int) -> int:
    """Everything beside weights, KV cache, graphs and what linear layers ask for."""
    return (
        activation_bytes(program, limits, dtype)
        + 4 * attention_floats(program, limits)
        + sampling_bytes(limits, program.vocab_size)
        + plan_bytes(limits, program, block_size)
    )


def sampling_bytes(limits: StepLimits, vocab_size: int) -> int:
    """What sampling takes at most, beside the logits."""
    rows = min(limits.max_logit_rows, rows_at_once(vocab_size))
    return vocab_size * (rows * SORT_BYTES + limits.max_logit_rows * EDIT_BYTES)


def rows_at_once(vocab_size: int) -> int:
    """Logits rows that sampling by sorting takes at once."""
    return max(1, SORTED_AT_ONCE // vocab_size)
