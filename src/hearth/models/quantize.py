"""Which weights are stored as codes, and how: the schemes behind `--quantize`.

Owns the choice per slot only; `kernels/packing` knows the layouts, the sink does the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hearth.core.config import DEFAULT_CODES, CodesConfig
from hearth.core.spec import (
    LinearSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    QuantSpec,
    SlotKind,
    VisionSpec,
    WeightSlot,
)
from hearth.core.units import round_up

# What `auto` and plans choose among, the most exact first. FP8 takes int8's memory, loses more and
# is slower on a CPU: it is there for who asks for it.
AUTO_SCHEMES = ("none", "int8", "int4")
SCHEMES = (*AUTO_SCHEMES, "fp8")
GROUP_SIZES = (32, 64, 128)
RESIDUAL = "int8-residual"
ACTIVATIONS = ("auto", "int8", RESIDUAL, "float32")
LEAST_GROUP = 32  # groups are multiples of it


def quantized(spec: ModelSpec, scheme: str, codes: CodesConfig = DEFAULT_CODES) -> ModelSpec:
    """The same model with its matrices stored as `scheme` says.

    int4: linear layers in 4 bits; head and embedding, which lose most, and a vision encoder, which
    is small, in 8. int8 and fp8: all in 8. Linear layers round what they read to int8, unless
    `codes` wants float32 activations or the codes are FP8. Norms, biases, routers and grids of
    positions stay as they are, and so does what the checkpoint has as codes; FP8 of a checkpoint
    stays as it is with fp8 only.
    """
    if scheme == "none":
        return spec
    in_8_bits = {spec.head, spec.embedding}
    exact = {layer.mlp.router_weight for layer in spec.layers if isinstance(layer.mlp, MoeSpec)}
    if spec.vision is not None:
        in_8_bits |= linear_slots(spec.vision)
        exact |= {spec.vision.position_table or ""}

    def convert(slot: WeightSlot) -> WeightSlot:
        if slot.kind is SlotKind.VECTOR or slot.name in exact or _has_codes(slot):
            return slot
        if scheme == "fp8":
            return slot if slot.quant.is_float else replace(slot, quant=_fp8_of(slot, codes))
        is_outer = slot.name in in_8_bits
        quant = _quant_of(slot, 4 if scheme == "int4" and not is_outer else 8, codes)
        return replace(slot, quant=replace(quant, symmetric=is_outer or not codes.zero_points))

    return replace(spec, slots=tuple(convert(slot) for slot in spec.slots))


def distinct_schemes(spec: ModelSpec, codes: CodesConfig = DEFAULT_CODES) -> tuple[str, ...]:
    """Of what auto chooses among those that differ: a checkpoint may be codes already.

    `spec`: one that no scheme was applied to.
    """
    found: dict[tuple[WeightSlot, ...], str] = {}
    for scheme in AUTO_SCHEMES:
        found.setdefault(quantized(spec, scheme, codes).slots, scheme)
    return tuple(found.values())


def _has_codes(slot: WeightSlot) -> bool:
    """Of the checkpoint; what it has in a floating point of its own may be quantized."""
    return slot.stored is not None and slot.stored.bits > 0


def linear_slots(vision: VisionSpec) -> set[str]:
    """The matrices of a vision encoder."""
    alone: list[LinearSpec] = [vision.patch_embed]
    mlps = [part for part in vision.merger if isinstance(part, MlpSpec)]
    alone += [part for part in vision.merger if isinstance(part, LinearSpec)]
    for layer in vision.layers:
        attention, mlp = layer.attention, layer.mlp
        alone += [attention.q, attention.kv, attention.out]
        if isinstance(mlp, MlpSpec):
            mlps.append(mlp)
        else:
            alone += [mlp.up, mlp.down]
    return {part.weight for part in alone} | {s for mlp in mlps for s in (mlp.gate_up, mlp.down)}


def _quant_of(slot: WeightSlot, bits: int, codes: CodesConfig) -> QuantSpec:
    group_size = _group_size(slot.cols, codes.group_size)
    quant = QuantSpec(slot.quant.dtype, bits, group_size)
    return with_rows(quant, codes) if slot.kind is SlotKind.LINEAR else quant


def with_rows(quant: QuantSpec, codes: CodesConfig) -> QuantSpec:
    """The same codes of a linear layer, multiplied with such rows."""
    return replace(
        quant,
        int8_rows=codes.activations != "float32",
        residual_rows=codes.activations == RESIDUAL,
    )


def _fp8_of(slot: WeightSlot, codes: CodesConfig) -> QuantSpec:
    group_size = _group_size(slot.cols, codes.group_size)
    return QuantSpec(slot.quant.dtype, 8, group_size, is_float=True)


def _group_size(cols: int, most: int) -> int:
    """The largest that fills rows of `cols` with whole groups; where none does, the largest."""
    sizes = [min(most, round_up(cols, LEAST_GROUP))]
    sizes += [size for size in reversed(GROUP_SIZES) if size < sizes[0]]
    return next((size for size in sizes if cols % size == 0), sizes[0])


def storage_of(slots: Sequence[WeightSlot]) -> str:
    """How the matrices are stored, by share of the parameters, such as "int4 91 %, int8 9 %"."""
    counts: dict[str, int] = {}
    for slot in slots:
        if slot.kind is not SlotKind.VECTOR:
            name = slot.quant.storage
            counts[name] = counts.get(name, 0) + slot.total_rows * slot.cols
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in ranked)
