"""From a model directory to an `AutoModelSpec`, and from that to a loaded transformers model.

transformers' own code alone is run (`trust_remote_code` is off), from local files alone. What it
raises is translated here.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hearth.core.errors import CapacityError, HearthError, ModelError, WeightsError
from hearth.core.memory import MemoryItem
from hearth.core.spec import DType
from hearth.core.units import MIB, format_count
from hearth.host.memory import HostMemory, MemoryFact, read_memory
from hearth.kernels.reference.weights import torch_dtype
from hearth.models.automodel import interface
from hearth.models.automodel.attention import scratch_bytes
from hearth.models.automodel.spec import AutoModelSpec
from hearth.models.automodel.trace import Trace, TraceSizes, refusal, trace
from hearth.models.config_json import ConfigJson
from hearth.models.dtype import checkpoint_dtype, resolve_dtype
from hearth.models.generation_config import read_generation_defaults
from hearth.models.windows import check_own_windows

# Resident memory of both processes, weights aside, once a model has run a step. (Measured on
# x86-64, Python 3.11, torch 2.13 for the CPU, transformers 5.23: 57 MiB the front end, 310 MiB the
# engine.)
RUNTIME_BYTES = 370 * MIB
# transformers recomputes the frequencies of these from the longest sequence of a batch.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
_ATTENTION_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What the settings say. `window`: tokens of --window, or None."""

    dtype: str
    max_tokens: int
    max_logit_rows: int
    window: int | None = None


def transformers() -> Any:
    """The library, made quiet and local; untyped, since much of it is."""
    # Read when huggingface_hub is imported: nothing is to be fetched, whatever the directory says.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    library: Any = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def choose_device() -> str:
    """Cuda where torch sees a device, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_device_memory(device: str) -> HostMemory:
    """What may still be taken where the weights and the KV cache will lie."""
    if device == "cpu":
        return read_memory()
    free, _ = torch.cuda.mem_get_info()
    return HostMemory((MemoryFact(free, f"free on {torch.cuda.get_device_name()}"),))


def load_automodel_spec(config_json: ConfigJson, path: Path, request: LoadRequest) -> AutoModelSpec:
    """Reads the configuration and traces the model on the meta device; reads no weight.

    Raises UnknownArchitectureError (with what cannot be honoured), ModelError, ConfigError.
    """
    interface.register()
    choice = resolve_dtype(request.dtype, checkpoint_dtype(config_json), has_float16=False)
    architecture = str(config_json.values["architectures"][0])
    config = _read_config(path, architecture)
    _check_config(config, architecture)
    num_positions = _num_positions(config, config_json)
    model = _meta_model(config, architecture)
    sizes = TraceSizes(request.max_tokens, request.max_logit_rows, num_positions)
    seen = trace(model, sizes)
    if request.window is not None:
        check_own_windows(request.window, [layer.window for layer in seen.layers])
    generation = read_generation_defaults(path, config_json, seen.vocab_size)
    return AutoModelSpec(
        path=path,
        architecture=architecture,
        max_position_embeddings=num_positions,
        vocab_size=seen.vocab_size,
        layers=seen.layers,
        window=request.window or 0,
        generation=generation,
        dtype=choice.dtype,
        dtype_reason=choice.reason,
        device=choose_device(),
        config=config,
        selects_logits=seen.selects_logits,
        fixed_memory=_fixed_memory(model, seen, choice.dtype, request),
        warnings=generation.warnings,
    )


def load_model(spec: AutoModelSpec, load_format: str, seed: int) -> tuple[Any, tuple[str, ...]]:
    """The model with its weights, ready for inference, and warnings.

    `load_format`: auto, safetensors, or dummy for random weights from `seed`. Raises WeightsError,
    CapacityError (no memory on the device).
    """
    dtype = torch_dtype(spec.dtype)
    warnings: tuple[str, ...] = ()
    if load_format == "dummy":
        torch.manual_seed(seed)
        model = transformers().AutoModelForCausalLM.from_config(
            spec.config, dtype=dtype, attn_implementation=interface.NAME, trust_remote_code=False
        )
    else:
        model, warnings = _read_weights(spec, dtype)
    try:
        return model.eval().requires_grad_(False).to(spec.device), warnings
    except torch.OutOfMemoryError as error:
        raise CapacityError(f"{spec.device} has no room for the weights: {error}") from error


def _read_weights(spec: AutoModelSpec, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    try:
        model, info = transformers().AutoModelForCausalLM.from_pretrained(
            spec.path,
            config=spec.config,
            dtype=dtype,
            attn_implementation=interface.NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        # Foreign code that reads foreign files: whatever it raises, these weights do not load.
        raise WeightsError(f"transformers cannot load the weights: {_first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(kind) or ())):
            raise WeightsError(
                f"the checkpoint does not fit {spec.architecture}: {kind.replace('_', ' ')}: "
                f"{_listing(found)}",
                hint="transformers would fill them with random numbers",
            )
    unused = sorted(map(str, info.get("unexpected_keys") or ()))
    if not unused:
        return model, ()
    return model, (f"{len(unused)} tensors of the checkpoint are not used: {_listing(unused)}",)


def _read_config(path: Path, architecture: str) -> Any:
    """The directory's configuration as transformers reads it."""
    try:
        return transformers().AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # Foreign code that reads a foreign file; code from the directory is refused by it as well.
        version = transformers().__version__
        why = f"transformers {version} does not read it: {_first_line(error)}"
        raise refusal(architecture, why) from error


def _check_config(config: Any, architecture: str) -> None:
    """Refuses what the configuration alone rules out."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(architecture, "it is an encoder-decoder")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "config.json: quantization_config is set; quantized checkpoints are not read yet",
            hint="use the unquantized one",
        )
    # Llama 4 scales queries by places counted from the start of a step, from 8192 on only:
    # the check of short prompts cannot see it.
    if getattr(text, "attn_temperature_tuning", False):
        raise refusal(architecture, "attn_temperature_tuning takes no positions")
    for kind in sorted(set(getattr(text, "layer_types", None) or ()) - set(_ATTENTION_TYPES)):
        raise refusal(architecture, f"it has layers of type {kind}")
    for kind in _rope_types(getattr(text, "rope_parameters", None)):
        if kind in _BATCH_DEPENDENT_ROPE:
            why = f"RoPE scaling of type {kind} would make an answer depend on its company"
            raise refusal(architecture, why)


def _rope_types(parameters: Any) -> list[str]:
    """The kinds of RoPE scaling in a config, one for all layers or one a layer type."""
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(part.get("rope_type", "default")) for part in nested or [parameters]]


def _num_positions(config: Any, config_json: ConfigJson) -> int:
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(
            f"{config_json.source}: max_position_embeddings is {value}; permitted: an integer ≥ 1",
            hint="the longest context of the model must be known",
            param="max_position_embeddings",
        )
    return value


def _meta_model(config: Any, architecture: str) -> Any:
    """The model on the meta device, in bfloat16: some operations know no other type there."""
    try:
        with torch.device("meta"):
            model = transformers().AutoModelForCausalLM.from_config(
                config,
                dtype=torch.bfloat16,
                attn_implementation=interface.NAME,
                trust_remote_code=False,
            )
    except HearthError:
        raise
    except KeyError as error:
        if error.args == (interface.NAME,):
            why = "its attention does not go through transformers' attention interface"
        else:
            why = f"AutoModelForCausalLM cannot build it: {_first_line(error)}"
        raise refusal(architecture, why) from error
    except Exception as error:
        # Foreign code and a foreign configuration.
        why = f"AutoModelForCausalLM cannot build it: {_first_line(error)}"
        raise refusal(architecture, why) from error
    if type(model).__name__ != architecture:
        found = type(model).__name__
        raise refusal(architecture, f"as a decoder, transformers would build {found} instead")
    return model.eval()


def _fixed_memory(
    model: Any, seen: Trace, dtype: DType, request: LoadRequest
) -> tuple[MemoryItem, ...]:
    """Weights, activations and libraries; a tensor that two names share counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    weights = sum(
        t.numel() * (dtype.num_bytes if t.is_floating_point() else t.element_size())
        for t in tensors
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    # Some of torch's products make a copy of their matrix in another layout.
    largest = max(p.numel() for p in model.parameters()) * dtype.num_bytes
    widening = dtype.num_bytes // DType.BFLOAT16.num_bytes
    logits = 3 * 4 * request.max_logit_rows * seen.vocab_size
    attention = scratch_bytes(seen.layers, request.max_tokens)
    activations = seen.activation_bytes * widening + largest + logits + attention
    return (
        MemoryItem("weights", weights, f"{format_count(num_parameters)} parameters as {dtype}"),
        MemoryItem(
            "activations",
            activations,
            f"a traced step of {format_count(request.max_tokens)} tokens and its attention, "
            f"logits of {request.max_logit_rows} rows, a copy of the largest matrix",
        ),
        MemoryItem("runtime", RUNTIME_BYTES, "two Python processes, torch and transformers"),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _listing(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
