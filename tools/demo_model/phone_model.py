"""The phone agent's network: its configuration, its start from the text model, its training pass.

Owns the shape of the `Glm4vForConditionalGeneration` and a forward pass for training over images
of one size and right-padded text. The pass uses the weights of transformers' modules and computes
the same function (a test compares them); it saves the loops over single images and positions.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tools.demo_model.export import MAX_CONTEXT_TOKENS
from tools.demo_model.phone_tokenizer import (
    BEGIN_OF_IMAGE,
    BEGIN_OF_VIDEO,
    END_OF_ANSWER,
    END_OF_IMAGE,
    END_OF_VIDEO,
    IMAGE,
    PADDED_VOCABULARY_SIZE,
    VIDEO,
    extended_embedding,
)
from tools.demo_model.tokenizer import END_OF_TEXT, OBSERVATION, USER, token_id
from torch.nn import functional
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from transformers.models.glm4v.modeling_glm4v import (
    Glm4vTextAttention,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)

HIDDEN = 192
# Before the text model's six: they look names up in the image, see phone_lookup.
NUM_LOOKUP_LAYERS = 2
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE
# 2 · height · width of a resized screen at most: some 105 tokens of 28 × 28 pixels.
LONGEST_EDGE = 182_000
SHORTEST_EDGE = 112 * 112
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def phone_config(tokenizer: Tokenizer) -> Glm4vConfig:
    """The configuration for this tokenizer."""
    ends = [token_id(tokenizer, one) for one in (END_OF_TEXT, USER, OBSERVATION, END_OF_ANSWER)]
    text = {
        "vocab_size": PADDED_VOCABULARY_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": NUM_LOOKUP_LAYERS + 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "pad_token_id": ends[0],
        "eos_token_id": ends,
        "rope_parameters": ROPE | {"mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 4,
        "hidden_size": HIDDEN,
        "num_heads": 6,
        "image_size": 336,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 512,
        "rms_norm_eps": 1e-5,
    }
    return Glm4vConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=token_id(tokenizer, IMAGE),
        image_start_token_id=token_id(tokenizer, BEGIN_OF_IMAGE),
        image_end_token_id=token_id(tokenizer, END_OF_IMAGE),
        video_token_id=token_id(tokenizer, VIDEO),
        video_start_token_id=token_id(tokenizer, BEGIN_OF_VIDEO),
        video_end_token_id=token_id(tokenizer, END_OF_VIDEO),
    )


def new_model(tokenizer: Tokenizer, text_model: Path) -> Glm4vForConditionalGeneration:
    """A model whose text part is the text model's and whose vision part is random."""
    model = Glm4vForConditionalGeneration(phone_config(tokenizer))
    old = {k: v.float() for k, v in load_file(text_model / "model.safetensors").items()}
    embedding = old.pop("model.embed_tokens.weight")
    weights = {_behind_lookup(k.removeprefix("model.")): v for k, v in old.items()}
    weights["embed_tokens.weight"] = extended_embedding(embedding, tokenizer, text_model)
    model.model.language_model.load_state_dict(weights, strict=False)  # no lookup in them
    model.tie_weights()
    _start_vision(model)
    return model


def _behind_lookup(name: str) -> str:
    """The name of a text model's weight, with its layer further back."""
    start, mark, rest = name.partition("layers.")
    number, dot, rest = rest.partition(".")
    return f"{start}{mark}{int(number) + NUM_LOOKUP_LAYERS}{dot}{rest}" if mark else name


def _start_vision(model: Glm4vForConditionalGeneration) -> None:
    """A start for the vision part that suits its width, and positions that can be told apart.

    The table of positions begins as sines and cosines of the row and the column, at half the size
    of normalised features: from 0.02, transformers' own start, places are learned slowly.
    """
    visual = model.model.visual
    for name, weight in visual.named_parameters():
        if weight.dim() >= 2 and "position" not in name:
            gain = 0.3 if name.endswith(("attn.proj.weight", "mlp.down_proj.weight")) else 0.8
            torch.nn.init.normal_(weight, std=gain * (weight.numel() / len(weight)) ** -0.5)
    table = visual.embeddings.position_embedding.weight
    side = int(len(table) ** 0.5)
    quarter = HIDDEN // 4
    share = (torch.arange(side) + 0.5) / side
    # Half a wave to twelve waves over the screen.
    angles = share[:, None] * math.pi * torch.logspace(0, math.log10(24), quarter)
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # [side, hidden / 2]
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    with torch.no_grad():
        table.copy_(0.7 * torch.cat([rows, columns], -1).reshape(len(table), HIDDEN))


def position_ids(num_before: int, rows: int, columns: int, num_tokens: int) -> np.ndarray:
    """Positions [3, num_tokens] of a sequence with one image of rows × columns at `num_before`.

    No image: rows and columns are 0. The image advances the position by its longer side.
    """
    ids = np.empty((3, num_tokens), dtype=np.int64)
    ids[:, :num_before] = np.arange(num_before)
    end = num_before + rows * columns
    ids[0, num_before:end] = num_before
    ids[1, num_before:end] = num_before + np.repeat(np.arange(rows), columns)
    ids[2, num_before:end] = num_before + np.tile(np.arange(columns), rows)
    ids[:, end:] = num_before + max(rows, columns) + np.arange(num_tokens - end)
    return ids


def to_patches(pixels: torch.Tensor) -> torch.Tensor:
    """Normalised images [n, 3, h, w] as patches [n, patches, 3·14·14], in 2 × 2 blocks."""
    num, _, height, width = pixels.shape
    rows, columns = height // CELL, width // CELL
    blocks = pixels.reshape(num, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(num, rows * columns * MERGE**2, -1)


def vision_pass(
    model: Glm4vForConditionalGeneration, patches: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    """Image features [n, rows · columns, hidden] of images of one size."""
    places = _patch_places(rows, columns)
    cos, sin = model.model.visual.rotary_pos_emb(patches, places)
    table = _position_table(model, places, rows, columns)
    merged = _vision_body(model, patches, table, cos, sin)
    return merged.view(len(patches), rows * columns, HIDDEN)


def _vision_layers(
    model: Glm4vForConditionalGeneration,
    patches: torch.Tensor,
    table: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    visual = model.model.visual
    num, num_patches, _ = patches.shape
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames are the same
    hidden = functional.linear(patches, weight, visual.patch_embed.proj.bias)
    hidden = visual.post_conv_layernorm(hidden) + table
    for block in visual.blocks:
        mixed = block.norm1(hidden)
        qkv = block.attn.qkv(mixed).view(num, num_patches, 3, block.attn.num_heads, -1)
        q, k, v = qkv.unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    hidden = visual.post_layernorm(hidden)
    cells = hidden.view(-1, MERGE, MERGE, HIDDEN).permute(0, 3, 1, 2)
    kernel = visual.downsample.weight.flatten(1)
    cells = functional.linear(cells.flatten(1), kernel, visual.downsample.bias)
    merged: torch.Tensor = visual.merger(cells)
    return merged


def _patch_places(rows: int, columns: int) -> torch.Tensor:
    """Row and column of every patch, int64 [patches, 2], in 2 × 2 blocks."""
    row = torch.arange(rows * MERGE).view(rows, 1, MERGE, 1).expand(rows, columns, MERGE, MERGE)
    column = torch.arange(columns * MERGE).view(1, columns, 1, MERGE)
    column = column.expand(rows, columns, MERGE, MERGE)
    return torch.stack([row.reshape(-1), column.reshape(-1)], -1)


def _position_table(
    model: Glm4vForConditionalGeneration, places: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    table = model.model.visual.embeddings.position_embedding.weight
    side = int(len(table) ** 0.5)
    grid = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    size = torch.tensor([columns * MERGE, rows * MERGE])
    points = (places.flip(-1) + 0.5) / size * 2 - 1
    sampled = functional.grid_sample(
        grid, points[None, :, None], mode="bicubic", align_corners=False, padding_mode="border"
    )
    return sampled[0, :, :, 0].T


def text_pass(
    model: Glm4vForConditionalGeneration, hidden: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """The last hidden states of embedded, right-padded sequences [n, tokens, hidden]."""
    cos, sin = model.model.language_model.rotary_emb(hidden, position_ids=positions)
    return _text_body(model, hidden, cos, sin)


def rotated_heads(
    attn: Glm4vTextAttention, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [n, heads, tokens, head_dim] of rows [n, tokens, hidden]."""
    num, num_tokens, _ = x.shape
    q, k, v = (
        project(x).view(num, num_tokens, -1, attn.head_dim).transpose(1, 2)
        for project in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, cos, sin)  # type: ignore[no-untyped-call]  # its types
    k, v = (one.repeat_interleave(attn.num_key_value_groups, 1) for one in (k, v))
    return q, k, v


def _text_layers(
    model: Glm4vForConditionalGeneration,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    text = model.model.language_model
    for layer in text.layers:
        attn = layer.self_attn
        q, k, v = rotated_heads(attn, layer.input_layernorm(hidden), cos, sin)
        mixed = functional.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, is_causal=True
        )
        mixed = attn.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.post_self_attn_layernorm(mixed)
        mixed = layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = hidden + layer.post_mlp_layernorm(mixed)
    last: torch.Tensor = text.norm(hidden)
    return last


def embed(
    model: Glm4vForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor | None
) -> torch.Tensor:
    """Embedded ids [n, tokens, hidden], image tokens replaced by the features in their order."""
    hidden: torch.Tensor = model.model.language_model.embed_tokens(ids)
    if features is None:
        return hidden
    place = (ids == model.config.image_token_id)[..., None].expand_as(hidden)
    return hidden.masked_scatter(place, features.to(hidden.dtype))


_vision_body: Callable[..., torch.Tensor] = _vision_layers
_text_body: Callable[..., torch.Tensor] = _text_layers


def compile_passes() -> None:
    """Lets torch compile both passes, in this process and for good."""
    global _vision_body, _text_body  # noqa: PLW0603 -- one switch for the whole process
    _vision_body = torch.compile(_vision_layers, dynamic=True)
    _text_body = torch.compile(_text_layers, dynamic=True)
