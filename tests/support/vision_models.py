"""Random models that see, conversations with images, and what transformers makes of them.

Weights are as in `hf_models`: random, sharp, every norm and bias showing. Images are smooth random
colours with noise, given to transformers as the pixel values that its own processor makes of them,
and to hearth as resized bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tests.support.hf_models import NUM_NEW_TOKENS, _randomize
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from hearth.core.images import ImageInput

IMAGE_TOKEN = 7
BEGIN_TOKEN, END_TOKEN = 8, 9
PATCH, MERGE = 14, 2
TOKEN_PIXELS = PATCH * MERGE
SIDES = ((3, 5), (4, 4), (7, 2), (1, 6))  # of images, in tokens (height, width)

CONFIG: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "image_start_token_id": BEGIN_TOKEN,
    "image_end_token_id": END_TOKEN,
    "video_token_id": 10,
    "video_start_token_id": 11,
    "video_end_token_id": 12,
    "text_config": {
        "vocab_size": 211,
        "hidden_size": 96,
        "intermediate_size": 120,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "pad_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 3],
        },
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 60,
        "num_heads": 3,
        "image_size": 70,  # a grid of 5 × 5 positions
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": 96,
        "intermediate_size": 76,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
    },
}

QWEN2_VL: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "vision_start_token_id": BEGIN_TOKEN,
    "vision_end_token_id": END_TOKEN,
    "video_token_id": 10,
    "text_config": {
        "vocab_size": 211,
        "hidden_size": 84,
        "intermediate_size": 132,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "use_sliding_window": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 2, 3],
        },
    },
    "vision_config": {
        "depth": 3,
        "embed_dim": 72,
        "hidden_size": 84,
        "num_heads": 3,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    },
}
QWEN2_5_VL: dict[str, Any] = {
    **QWEN2_VL,
    "vision_config": {
        "depth": 4,
        "hidden_size": 72,
        "out_hidden_size": 84,
        "intermediate_size": 90,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": 3 * TOKEN_PIXELS,  # windows of 3 × 3 tokens
        "fullatt_block_indexes": [1, 3],
    },
}
CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "glm4v": (Glm4vConfig, Glm4vForConditionalGeneration, CONFIG),
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, QWEN2_VL),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, QWEN2_5_VL),
}
# Chosen so that greedy answers vary and the best logits lie apart.
SEEDS = {"glm4v": 3, "qwen2_vl": 14, "qwen2_5_vl": 13}


@dataclass(frozen=True)
class Picture:
    """An image at the size that the encoder sees, and transformers' pixel values of it."""

    pixels: NDArray[np.uint8]  # [height, width, 3]
    patches: torch.Tensor  # [grid height · grid width, values]
    grid: tuple[int, int]  # patches

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1] // MERGE**2


@dataclass(frozen=True)
class Conversation:
    """A prompt: tokens, and the images that its runs of image tokens stand for."""

    prompt: tuple[int, ...]
    pictures: tuple[int, ...]  # numbers of pictures
    starts: tuple[int, ...]  # their first tokens


@dataclass(frozen=True)
class ExpectedVision:
    """What transformers says: features of each picture, greedy answers, logits at each position."""

    path: Path
    pictures: tuple[Picture, ...]
    features: tuple[NDArray[np.float32], ...]
    conversations: tuple[Conversation, ...]
    greedy: tuple[tuple[int, ...], ...]
    logits: tuple[NDArray[np.float32], ...]

    def images_of(self, conversation: Conversation) -> tuple[ImageInput, ...]:
        """As a request has them; pixels lie beside the checkpoint."""
        return tuple(
            image_input(self.pictures[number], start, self.path / f"picture-{number}")
            for number, start in zip(conversation.pictures, conversation.starts, strict=True)
        )


def image_input(picture: Picture, first_token: int, path: Path) -> ImageInput:
    if not path.exists():
        path.write_bytes(picture.pixels.tobytes())
    sizes = b"".join(side.to_bytes(4, "little") for side in picture.grid)
    digest = hashlib.sha256(sizes + picture.pixels.tobytes()).digest()
    return ImageInput(digest, first_token, picture.num_tokens, *picture.grid, str(path))


def make_picture(random: np.random.Generator, height: int, width: int) -> Picture:
    """An image of height × width tokens."""
    coarse = random.integers(0, 256, (3 * height, 3 * width, 3))
    scale = np.ones((TOKEN_PIXELS, TOKEN_PIXELS, 1), np.int64)
    large = np.kron(coarse, scale)[: height * TOKEN_PIXELS, : width * TOKEN_PIXELS]
    noise = random.integers(-20, 21, large.shape)
    pixels = np.clip(large + noise, 0, 255).astype(np.uint8)
    make: Any = Glm4vImageProcessorPil
    processor = make(
        size={"shortest_edge": 1, "longest_edge": 10**9},
        patch_size=PATCH,
        merge_size=MERGE,
    )
    made = processor(images=[pixels], return_tensors="pt")
    grid = made["image_grid_thw"][0].tolist()
    assert grid == [1, height * MERGE, width * MERGE]
    return Picture(pixels, made["pixel_values"].float(), (grid[1], grid[2]))


def build_model(seed: int, family: str = "glm4v", config: dict[str, Any] | None = None) -> Any:
    """The transformers model, float32, with random weights."""
    torch.manual_seed(seed)
    make_config, make_model, default = CLASSES[family]
    plain = make_config(
        **(config or default), attn_implementation="eager", tie_word_embeddings=False
    )
    model = make_model(plain).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomize(name, parameter, tied=False)
            if parameter.ndim > 2:  # a convolution: what an output reads is all but the first
                parameter.normal_(0.0, 3.0 * parameter[0].numel() ** -0.5)
            if "position_embedding" in name:
                parameter.normal_(0.0, 1.0)
            if (
                "visual.blocks" in name and parameter.ndim == 2
            ):  # sharper, it would enlarge roundings
                parameter.mul_(0.5)
            if name.endswith(("merger.down_proj.weight", "merger.mlp.2.weight")):
                parameter.mul_(0.1)  # features as large as embeddings
    return model


def converse(
    random: np.random.Generator, pictures: Sequence[Picture], plan: Sequence[int]
) -> Conversation:
    """Text, then a picture and text for each number of the plan; lengths are odd."""
    tokens = random.integers(20, 211, 11).tolist()
    starts = []
    for number in plan:
        tokens.append(BEGIN_TOKEN)
        starts.append(len(tokens))
        tokens += [IMAGE_TOKEN] * pictures[number].num_tokens
        tokens.append(END_TOKEN)
        tokens += random.integers(20, 211, int(random.integers(3, 9))).tolist()
    return Conversation(tuple(tokens), tuple(plan), tuple(starts))


PLANS: tuple[tuple[int, ...], ...] = ((), (0,), (1, 2, 3), (2,), (), (3, 0))


def expect_vision(path: Path, family: str = "glm4v", seed: int | None = None) -> ExpectedVision:
    """Saves the model in `path`, and records what transformers answers."""
    seed = SEEDS[family] if seed is None else seed
    model = build_model(seed, family)
    model.save_pretrained(path)
    random = np.random.default_rng(seed)
    pictures = tuple(make_picture(random, *side) for side in SIDES)
    conversations = tuple(converse(random, pictures, plan) for plan in PLANS)
    features, greedy, logits = [], [], []
    with torch.no_grad():
        for picture in pictures:
            grid = torch.tensor([[1, *picture.grid]])
            features.append(model.model.visual(picture.patches, grid).pooler_output.numpy())
        for conversation in conversations:
            answer = _generate(model, pictures, conversation)
            greedy.append(answer)
            whole = inputs_of(pictures, conversation, answer)
            logits.append(model(**whole).logits[0].numpy())
    return ExpectedVision(
        path, pictures, tuple(features), conversations, tuple(greedy), tuple(logits)
    )


def inputs_of(
    pictures: Sequence[Picture], conversation: Conversation, answer: Sequence[int] = ()
) -> dict[str, torch.Tensor]:
    """What transformers' model takes."""
    ids = torch.tensor([[*conversation.prompt, *answer]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if conversation.pictures:
        shown = [pictures[number] for number in conversation.pictures]
        inputs["pixel_values"] = torch.cat([picture.patches for picture in shown])
        inputs["image_grid_thw"] = torch.tensor([[1, *picture.grid] for picture in shown])
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    return inputs


def _generate(
    model: Any, pictures: Sequence[Picture], conversation: Conversation
) -> tuple[int, ...]:
    inputs = inputs_of(pictures, conversation)
    banned = [[token] for token in (IMAGE_TOKEN, BEGIN_TOKEN, END_TOKEN, 10, 11, 12)]
    out = model.generate(
        **inputs,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        bad_words_ids=banned,
    )
    return tuple(out[0, len(conversation.prompt) :].tolist())
