"""A GGUF file's metadata as the config.json that the family files read."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from hearth.core.errors import ModelError, UnknownArchitectureError, WeightsError
from hearth.models.gguf.file import GgufFile
from hearth.models.gguf.glm4v import SECTIONS as _SECTIONS
from hearth.models.gguf.glm4v import glm4v_config
from hearth.models.gguf.metadata import Metadata
from hearth.models.gguf.names import ARCHITECTURES, GLM4V, ROPE_FACTORS, Architecture
from hearth.models.safetensors_file import TensorEntry
from hearth.models.stored import KEY

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_FACTORS = 1 << 16


def architecture_of(file: GgufFile) -> Architecture:
    """Raises UnknownArchitectureError for one without a table of names."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnknownArchitectureError(
            f"{file.path.name}: general.architecture is {name!r}; supported as GGUF: "
            f"{', '.join(sorted(ARCHITECTURES))}",
            hint="serve the model's safetensors instead",
        )
    if file.metadata.get(f"{name}.expert_count"):
        raise UnknownArchitectureError(
            f"{file.path.name}: {name}.expert_count is {file.metadata[f'{name}.expert_count']}; "
            "supported as GGUF: models without experts",
            hint="serve the model's safetensors instead",
        )
    if name == "glm4" and f"glm4.{_SECTIONS}" in file.metadata:
        return GLM4V
    return ARCHITECTURES[name]


def config_of(file: GgufFile, projector: GgufFile | None = None) -> dict[str, Any]:
    """The configuration. `projector`: the file of the encoder, for a model that sees.

    Raises ModelError: metadata is missing or of another kind, or a model that sees has no encoder.
    """
    architecture = architecture_of(file)
    read = Metadata(file)
    text = _text_config(file, architecture, read)
    if architecture is not GLM4V:
        return text
    if projector is None:
        raise ModelError(
            f"{file.path.name} is the language model of a model that sees; its encoder is missing",
            hint="put its mmproj file (mmproj-….gguf) beside it, and no other one",
        )
    return glm4v_config(text, read, projector)


def _text_config(file: GgufFile, architecture: Architecture, read: Metadata) -> dict[str, Any]:
    heads = read.number("attention.head_count", int)
    hidden = read.number("embedding_length", int)
    head_dim = read.optional("attention.key_length", int) or hidden // max(1, heads)
    if (read.optional("attention.value_length", int) or head_dim) != head_dim:
        raise read.error("attention.value_length", f"{head_dim}, that of keys")
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "dtype": _dtype_of(file),
        "hidden_size": hidden,
        "intermediate_size": read.number("feed_forward_length", int),
        "num_hidden_layers": read.number("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": read.optional("attention.head_count_kv", int) or heads,
        "head_dim": head_dim,
        "max_position_embeddings": read.number("context_length", int),
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon", float),
        "vocab_size": _vocabulary_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "rope_parameters": _rope(read, head_dim),
    }
    config[KEY] = {
        "quant_method": "gguf",
        "rows": architecture.rows,
        "rotary_dim": int(head_dim * config["rope_parameters"]["partial_rotary_factor"]),
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
    }
    return config | _token_ids(read)


def _token_ids(read: Metadata) -> dict[str, Any]:
    """Beginning and end; several tokens may end an answer."""
    found: dict[str, Any] = {}
    ends = []
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        value = read.optional(f"tokenizer.ggml.{key}", int, read.file.metadata)
        if value is not None and value not in ends:
            ends.append(value)
    if ends:
        found["eos_token_id"] = ends
    first = read.optional("tokenizer.ggml.bos_token_id", int, read.file.metadata)
    return found if first is None else found | {"bos_token_id": first}


def _rope(read: Metadata, head_dim: int) -> dict[str, Any]:
    rotated = read.optional("rope.dimension_count", int) or head_dim
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": read.optional("rope.freq_base", float) or 10000.0,
        "partial_rotary_factor": rotated / head_dim,
    }
    factors = read.file.tensors.get(ROPE_FACTORS)
    kind = read.optional("rope.scaling.type", str) or "none"
    original = read.optional("rope.scaling.original_context_length", int)
    if factors is not None:  # Llama 3.1 and its like: a factor for each frequency
        listed = _floats(factors)
        return rope | {
            "rope_type": "longrope", "short_factor": listed, "long_factor": listed,
            "attention_factor": 1.0, "factor": 1.0,
        }  # fmt: skip
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": read.number("rope.scaling.factor", float)}
        return rope if original is None else rope | {"original_max_position_embeddings": original}
    if kind != "none":
        raise read.error("rope.scaling.type", '"none", "linear", "yarn"')
    return rope


def _floats(entry: TensorEntry) -> list[float]:
    if entry.dtype != "F32" or len(entry.shape) != 1 or entry.shape[0] > _MOST_FACTORS:
        raise WeightsError(
            f"{entry.path.name}: tensor {entry.name} is {entry.dtype} {list(entry.shape)}; "
            "permitted: a vector of F32"
        )
    with entry.path.open("rb") as file:
        file.seek(entry.begin)
        return list(struct.unpack(f"<{entry.shape[0]}f", file.read(entry.end - entry.begin)))


def _vocabulary_size(file: GgufFile) -> int:
    entry = file.tensors.get("token_embd.weight")
    if entry is None:
        raise WeightsError(
            f"{file.path.name} has no tensor token_embd.weight: it holds no language model",
            hint="an mmproj file goes with a model's own GGUF file",
        )
    return entry.shape[0]


def _dtype_of(file: GgufFile) -> str:
    """Of most matrices; where those are codes, what keys and values are best kept in."""
    sizes: Counter[str] = Counter()
    for entry in file.tensors.values():
        if len(entry.shape) > 1:
            sizes[entry.dtype] += entry.end - entry.begin
    most = max(sizes, key=sizes.__getitem__, default="BF16")
    return _FLOATS.get(most, "bfloat16")
