"""Which precision the weights are kept in, with the reason for the choice."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.core.errors import ConfigError, ModelError
from hearth.core.spec import DType
from hearth.models.config_json import ConfigJson, shown

PERMITTED = ("auto", *(dtype.value for dtype in DType))


@dataclass(frozen=True, slots=True)
class DTypeChoice:
    """The precision of weights and KV cache, and why."""

    dtype: DType
    reason: str


def checkpoint_dtype(config: ConfigJson) -> DType | None:
    """The precision that config.json declares (`dtype`, before transformers 5 `torch_dtype`)."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    if not config.has(key):
        return None
    text = config.text(key, default="").removeprefix("torch.")
    if text in ("auto", ""):
        return None
    try:
        return DType(text)
    except ValueError:
        permitted = ", ".join(d.value for d in DType)
        raise ModelError(
            f"{config.source}: {key} is {shown(text)}; permitted: {permitted}", param=key
        ) from None


def resolve_dtype(
    requested: str, checkpoint: DType | None, *, has_float16: bool = True
) -> DTypeChoice:
    """Resolves `--dtype` against what the checkpoint declares (None: nothing).

    `auto` keeps what it is. Without `has_float16` float32 stands for float16, which it holds
    exactly. Raises ConfigError for an unknown or unsupported request.
    """
    permitted = [name for name in PERMITTED if has_float16 or name != DType.FLOAT16]
    if requested not in permitted:
        hint = None
        if requested in ("float16", "half"):
            hint = "this is not offered here; float32 keeps a float16 checkpoint exactly"
        raise ConfigError(
            f"--dtype is {requested!r}; permitted: {', '.join(permitted)}", hint=hint, param="dtype"
        )
    if requested != "auto":
        stored = f", the checkpoint is {checkpoint}" if checkpoint else ""
        return DTypeChoice(DType(requested), f"--dtype {requested}{stored}")
    if checkpoint is None:
        return DTypeChoice(DType.FLOAT32, "config.json names no dtype: transformers' default")
    if checkpoint is DType.FLOAT16 and not has_float16:
        return DTypeChoice(
            DType.FLOAT32,
            "the checkpoint is float16: kept exactly; --dtype bfloat16 halves the memory",
        )
    return DTypeChoice(checkpoint, f"the checkpoint is {checkpoint}")
