"""GGUF files by the package `gguf` itself, from transformers' models: what reading is held to.

The package rounds to the plain types; of the K types it has no rounding, so that their blocks are
random bytes with scales that give weights of a usable size, and it says what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tests.support.gguf_writer import finish

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "glm4": gguf.MODEL_ARCH.GLM4,
}
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
TypeOf = Callable[[str], Type]


@dataclass(frozen=True)
class Vocabulary:
    """Metadata of a tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None


def random_blocks(kind: Type, rows: int, cols: int, seed: int = 0) -> NDArray[np.uint8]:
    """[rows, bytes] whose values are about cols^−½ large."""
    elements, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * cols // elements, num_bytes), np.uint8)
    size = cols**-0.5
    if kind is Type.Q6_K:
        blocks[:, 208:210] = _half(size / 1200)
    else:
        codes = 7.5 if kind is Type.Q4_K else 15.5
        blocks[:, 0:2] = _half(size / (20 * codes))
        blocks[:, 2:4] = _half(size / 20)
    return blocks.reshape(rows, -1)


def _half(value: float) -> NDArray[np.uint8]:
    return np.array([value], "<f2").view(np.uint8)


def stored(weight: NDArray[np.float32], kind: Type, seed: int) -> tuple[Any, NDArray[np.float32]]:
    """A matrix as the file has it, and what that stands for."""
    if kind in K_TYPES:
        data = random_blocks(kind, weight.shape[0], weight.shape[1], seed)
    else:
        data = gguf.quants.quantize(weight, kind)
    return data, np.asarray(gguf.quants.dequantize(data, kind), np.float32)


def permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k as llama.cpp's converter orders Llama's (LlamaModel.permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def restored(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The inverse of `permuted`."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def save_gguf(
    model: Any,
    path: Path,
    type_of: TypeOf,
    vocabulary: Vocabulary | None = None,
    factors: NDArray[np.float32] | None = None,
    part_tensors: int = 0,
) -> dict[str, torch.Tensor]:
    """Writes a transformers model; the values of its matrices by checkpoint name.

    `part_tensors`: of each part, where it is to have several; their names are the library's.
    """
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, name, split_max_tensors=part_tensors)
    add_sizes(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    share = config.rope_parameters.get("partial_rotary_factor", 1)
    writer.add_rope_dimension_count(int(config.head_dim * share))
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    values: dict[str, torch.Tensor] = {}
    for index, (key, tensor) in enumerate(model.state_dict().items()):
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert target is not None, key
        weight = tensor.float().numpy()
        heads = _heads(config, key) if name == "llama" else 0
        if heads:
            weight = permuted(weight, heads)
        if weight.ndim < 2:
            writer.add_tensor(target, weight)
            continue
        kind = type_of(key)
        data, value = stored(weight, kind, index)
        writer.add_tensor(target, data, raw_dtype=kind)
        values[key] = torch.from_numpy(restored(value, heads) if heads else value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    finish(writer)
    return values


def _heads(config: Any, key: str) -> int:
    if ".q_proj." in key:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in key else 0


def add_sizes(writer: Any, config: Any) -> None:
    """What every language model has."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
