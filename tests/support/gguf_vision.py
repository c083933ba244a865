"""GLM-4.1V as llama.cpp's converter splits it: a language model and an encoder (mmproj)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tests.support.gguf_models import add_sizes, stored
from tests.support.gguf_writer import finish

TOKENS = {7: "<|image|>", 8: "<|begin_of_image|>", 9: "<|end_of_image|>"}
MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.75, 1.0]


def to_halves(weight: NDArray[np.float32], head_dim: int, rotary: int) -> NDArray[np.float32]:
    """Rows of q or k as `Glm4Model.normal_to_neox` orders them: row by row, from its meaning."""
    found = weight.copy()
    for head in range(len(weight) // head_dim):
        for i in range(rotary // 2):
            for part in (0, 1):
                source = head * head_dim + 2 * i + part
                found[head * head_dim + part * rotary // 2 + i] = weight[source]
    return found


def save_vision(model: Any, directory: Path) -> dict[str, torch.Tensor]:
    """Writes `m.gguf` and `mmproj-m.gguf`; every tensor's values by checkpoint name.

    Matrices of the language model are Q8_0 where their rows allow it, the encoder's F16.
    """
    text, vision = model.config.text_config, model.config.vision_config
    writer = gguf.GGUFWriter(directory / "m.gguf", "glm4")
    encoder = gguf.GGUFWriter(directory / "mmproj-m.gguf", "clip")
    _add_text(writer, text)
    _add_vision(encoder, vision, text.hidden_size)
    values = {}
    for key, tensor in model.state_dict().items():
        weight = tensor.float().numpy()
        if "visual" in key:
            values[key] = _add_of_encoder(encoder, key, weight, vision.depth)
        else:
            values[key] = _add_of_text(writer, key, weight, text)
    finish(writer)
    finish(encoder)
    return values


def _add_of_text(writer: Any, key: str, weight: NDArray[np.float32], config: Any) -> torch.Tensor:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4, config.num_hidden_layers)
    name = names.get_name(key.replace("language_model.", ""), try_suffixes=(".weight", ".bias"))
    assert name is not None, key
    head_dim = config.hidden_size // config.num_attention_heads
    is_rotated = ".q_proj." in key or ".k_proj." in key
    kind = Type.Q8_0 if weight.ndim > 1 and weight.shape[1] % 32 == 0 else Type.F32
    if kind is Type.Q8_0:  # a row is rounded by itself: its order does not matter
        weight = stored(weight, kind, 0)[1]
    placed = to_halves(weight, head_dim, head_dim // 2) if is_rotated else weight
    if kind is Type.Q8_0:
        writer.add_tensor(name, gguf.quants.quantize(placed, kind), raw_dtype=kind)
        assert np.array_equal(
            gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind), weight
        )
    else:
        writer.add_tensor(name, placed)
    return torch.from_numpy(weight)


def _add_of_encoder(writer: Any, key: str, weight: NDArray[np.float32], depth: int) -> torch.Tensor:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, depth)
    name = names.get_name(key.removeprefix("model."), try_suffixes=(".weight", ".bias"))
    assert name is not None, key
    if weight.ndim < 2:
        writer.add_tensor(name, weight)
        return torch.from_numpy(weight)
    halved = weight.astype(np.float16)
    if "patch_embed.proj.weight" in key:
        writer.add_tensor(name, np.ascontiguousarray(halved[:, :, 0]))
        writer.add_tensor(f"{name}.1", np.ascontiguousarray(halved[:, :, 1]))
    else:
        writer.add_tensor(name, halved)
    return torch.from_numpy(halved.astype(np.float32))


def _add_text(writer: Any, config: Any) -> None:
    head_dim = config.hidden_size // config.num_attention_heads
    add_sizes(writer, config)
    writer.add_rope_dimension_count(head_dim // 2)
    writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4")
    tokens = [TOKENS.get(i, chr(0x100 + i)) for i in range(config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in TOKENS else 1 for i in range(config.vocab_size)])
    writer.add_array("tokenizer.ggml.merges", [f"{tokens[20]} {tokens[21]}"])


def _add_vision(writer: Any, config: Any, width: int) -> None:
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("glm4v")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_block_count(config.depth)
    writer.add_vision_head_count(config.num_heads)
    writer.add_vision_image_mean(MEAN)
    writer.add_vision_image_std(STD)
    writer.add_vision_use_silu(True)
    writer.add_vision_attention_layernorm_eps(config.rms_norm_eps)
