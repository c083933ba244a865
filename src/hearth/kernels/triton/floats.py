"""Which float type a model computes in on a device, and why. No imports of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.spec import DType

_LEAST_OF_BFLOAT16 = (8, 0)  # sm_80: Ampere


@dataclass(frozen=True, slots=True)
class FloatChoice:
    """The float type of dense weights, activations and KV cache, and why."""

    dtype: DType
    reason: str


def choose_float(model: DType, capability: tuple[int, int] | None) -> FloatChoice:
    """What a model that is kept as `model` gets on a card of this compute capability.

    None: no card, the CPU's interpreter, which has every type. float32 stays float32: its products
    do not run on tensor cores, which is what whoever asks for it wants to avoid.
    """
    if model is not DType.BFLOAT16 or capability is None or capability >= _LEAST_OF_BFLOAT16:
        return FloatChoice(model, f"as the model's weights are kept: {model}")
    major, minor = capability
    return FloatChoice(
        DType.FLOAT16,
        f"the card is sm_{major}{minor}, and bfloat16 needs sm_80: float16 holds every weight up "
        "to 65,504 with more digits, and a model with larger ones is refused",
    )
