"""How keys and values are stored: `--kv-cache-dtype`, resolved against what runs the model.

`auto` keeps the float type of the weights, as a loss is the user's to ask for. Codes need the C++
kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.config import Choice, EngineConfig
from hearth.core.errors import ConfigError
from hearth.core.spec import KvDType, float_kv
from hearth.core.units import format_bytes
from hearth.engine.executor import BackendChoice, LoadedModel
from hearth.host.fit import FitRequest, token_bytes
from hearth.kernels.packing import kv_refusal
from hearth.models.automodel.spec import AutoModelSpec

# The names of the flag; those of vLLM among them.
KV_CACHE_DTYPES = {
    "auto": None,
    "bf16": KvDType.BFLOAT16,
    "bfloat16": KvDType.BFLOAT16,
    "int8": KvDType.INT8,
    "int4": KvDType.INT4,
    "fp8": KvDType.FP8,
    "fp8_e4m3": KvDType.FP8,
}
OFFERED = ("auto", "bf16", "int8", "int4", "fp8")
_SMALLER = (KvDType.BFLOAT16, KvDType.INT8, KvDType.INT4)  # that are told of where room is short


@dataclass(frozen=True, slots=True)
class KvStorage:
    """How keys and values are stored, and in which smaller forms they could be."""

    dtype: KvDType
    smaller: tuple[KvDType, ...]


def resolve_kv_storage(
    backend: BackendChoice, config: EngineConfig, loaded: LoadedModel
) -> KvStorage:
    """Raises ConfigError for a form that this model, or what runs it, cannot have."""
    own = _own(backend, config, loaded)
    asked = KV_CACHE_DTYPES[config.cache.dtype]
    chosen = asked or own
    if refusal := _refusal(chosen, own, backend, loaded):
        permitted = [str(d) for d in (own, *_permitted(own, backend, loaded)) if d is not chosen]
        raise ConfigError(
            f"--kv-cache-dtype is {config.cache.dtype!r}, and {refusal}",
            param="kv_cache_dtype",
            hint=f"permitted here: auto, {', '.join(dict.fromkeys(permitted))}",
        )
    smaller = tuple(
        d for d in _SMALLER if d.bits < chosen.bits and not _refusal(d, own, backend, loaded)
    )
    return KvStorage(chosen, smaller)


def _own(backend: BackendChoice, config: EngineConfig, loaded: LoadedModel) -> KvDType:
    """Without anything that is asked for."""
    if backend.name == "triton":
        from hearth.engine.device import kv_dtype

        return kv_dtype(config, loaded.dtype)
    is_foreign = isinstance(loaded, AutoModelSpec)
    return KvDType(loaded.dtype) if is_foreign else float_kv(loaded.dtype)


def kv_choice(config: EngineConfig, loaded: LoadedModel, request: FitRequest) -> Choice:
    """`int8, 20.6 KiB a token`, and why."""
    dtype, asked = request.stored_kv, config.cache.dtype
    size = token_bytes(request)
    value = f"{dtype}, {format_bytes(round(size))} a token"
    if asked == "auto":
        reason = f"auto: as the weights' float type, {loaded.dtype}"
        if dtype is not KvDType(loaded.dtype):
            reason += ", of which there are no keys and values: float32 holds them"
        if any(d is KvDType.INT8 for d in request.smaller_kv):
            reason += "; --kv-cache-dtype int8 takes about half of bfloat16 and loses a little"
        return Choice("kv_cache_dtype", value, reason)
    reason = "--kv-cache-dtype"
    if dtype.is_coded:
        reason += (
            f" {asked}: codes with a scale for each token and head; docs/kv-cache.md says what it "
            "loses"
        )
    return Choice("kv_cache_dtype", value, reason)


def _permitted(own: KvDType, backend: BackendChoice, loaded: LoadedModel) -> tuple[KvDType, ...]:
    offered = (KvDType.BFLOAT16, KvDType.INT8, KvDType.INT4, KvDType.FP8)
    return tuple(d for d in offered if not _refusal(d, own, backend, loaded))


def _refusal(dtype: KvDType, own: KvDType, backend: BackendChoice, loaded: LoadedModel) -> str:
    """Why it cannot be; empty: it can."""
    if dtype is own:
        return ""
    if isinstance(loaded, AutoModelSpec):
        return f"transformers runs the model, which stores {loaded.dtype}"
    if backend.name == "triton":
        if dtype is KvDType.INT4:
            return "the kernels of the GPU read no keys and values of 4 bits"
        if dtype is KvDType.BFLOAT16 and own is KvDType.FLOAT16:
            return "the card has no bfloat16"
    elif dtype.is_coded and backend.name != "cpu":
        return f"codes need the C++ kernels; {backend.name} runs the model ({backend.reason})"
    refusals = (kv_refusal(dtype, group.head_dim) for group in loaded.program.kv_groups)
    return next(filter(None, refusals), "")
