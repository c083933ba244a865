"""Which weights are stored as codes, and how: the schemes behind `--quantize`.

Owns the choice per slot only; `kernels/packing` knows the layouts, the sink does the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hearth.core.spec import ModelSpec, MoeSpec, QuantSpec, SlotKind, WeightSlot
from hearth.core.units import round_up

GROUP_SIZE = 128
LEAST_GROUP = 32  # groups are multiples of it


def quantized(spec: ModelSpec, scheme: str) -> ModelSpec:
    """The same model with its matrices stored as `scheme` says.

    int4: linear layers in 4 bits; head and embedding, which lose most, in 8. int8: all in 8.
    Linear layers round what they read to int8. Norms, biases, routers and the stacked matrices of
    experts stay as they are.
    """
    if scheme == "none":
        return spec
    in_8_bits = {spec.head, spec.embedding}
    routers = {layer.mlp.router_weight for layer in spec.layers if isinstance(layer.mlp, MoeSpec)}

    def convert(slot: WeightSlot) -> WeightSlot:
        if slot.kind is SlotKind.VECTOR or slot.stack > 1 or slot.name in routers:
            return slot
        return _coded(slot, 4 if scheme == "int4" and slot.name not in in_8_bits else 8)

    return replace(spec, slots=tuple(convert(slot) for slot in spec.slots))


def _coded(slot: WeightSlot, bits: int) -> WeightSlot:
    group_size = min(GROUP_SIZE, round_up(slot.cols, LEAST_GROUP))
    is_linear = slot.kind is SlotKind.LINEAR
    return replace(slot, quant=QuantSpec(slot.quant.dtype, bits, group_size, int8_rows=is_linear))


def storage_of(slots: Sequence[WeightSlot]) -> str:
    """How the matrices are stored, by share of the parameters, such as "int4 91 %, int8 9 %"."""
    counts: dict[str, int] = {}
    for slot in slots:
        if slot.kind is not SlotKind.VECTOR:
            name = f"int{slot.quant.bits}" if slot.quant.bits else str(slot.quant.dtype)
            counts[name] = counts.get(name, 0) + slot.total_rows * slot.cols
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in ranked)
