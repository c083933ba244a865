"""Which weights are stored as codes, and how: the schemes behind `--quantize`.

Owns the choice per slot only; `kernels/packing` knows the layouts, the sink does the rounding.
"""

from __future__ import annotations

from dataclasses import replace

from hearth.core.spec import ModelSpec, QuantSpec, SlotKind, WeightSlot
from hearth.core.units import round_up

SCHEMES = ("none", "int8", "int4")
GROUP_SIZE = 128
LEAST_GROUP = 32  # groups are multiples of it


def quantized(spec: ModelSpec, scheme: str) -> ModelSpec:
    """The same model with its matrices stored as `scheme` says.

    int4: linear layers in 4 bits; head and embedding, which lose most, in 8. int8: all in 8.
    Linear layers round what they read to int8. Norms and biases stay float32.
    """
    if scheme == "none":
        return spec
    kept = {spec.head, spec.embedding}
    slots = tuple(
        replace(slot, quant=_quant_of(slot, 4 if scheme == "int4" and slot.name not in kept else 8))
        for slot in spec.slots
    )
    return replace(spec, slots=slots)


def _quant_of(slot: WeightSlot, bits: int) -> QuantSpec:
    if slot.kind is SlotKind.VECTOR:
        return slot.quant
    group_size = min(GROUP_SIZE, round_up(slot.cols, LEAST_GROUP))
    return QuantSpec(slot.quant.dtype, bits, group_size, int8_rows=slot.kind is SlotKind.LINEAR)
