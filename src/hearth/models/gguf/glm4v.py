"""GLM-4.1V and AutoGLM-Phone from two GGUF files: the language model's and the encoder's (mmproj).

Source: `Glm4Model` and `Glm4VVisionModel` of llama.cpp's converter. What it leaves out is what all
models of the family share: two frames a patch, 2 × 2 patches a token.
"""

from __future__ import annotations

from typing import Any

from hearth.core.errors import ModelError
from hearth.models.gguf.file import GgufFile
from hearth.models.gguf.metadata import Metadata
from hearth.models.stored import KEY

SECTIONS = "rope.dimension_sections"
_PROJECTOR = "glm4v"
_OUTER = ("architectures", "model_type", "dtype", "tie_word_embeddings", KEY)
_TOKENS = {
    "image_token_id": "<|image|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
}


def glm4v_config(text: dict[str, Any], read: Metadata, projector: GgufFile) -> dict[str, Any]:
    """The whole configuration from that of the text. Raises ModelError."""
    metadata = projector.metadata
    kind = metadata.get("clip.projector_type") or metadata.get("clip.vision.projector_type")
    if metadata.get("general.architecture") != "clip" or kind != _PROJECTOR:
        raise ModelError(
            f"{projector.path.name}: clip.projector_type is {kind!r}; permitted: {_PROJECTOR!r}",
            hint="take the mmproj file that belongs to the model",
        )
    inner = {key: value for key, value in text.items() if key not in _OUTER}
    inner |= {"model_type": "glm4v_text", "tie_word_embeddings": text["tie_word_embeddings"]}
    inner["rope_parameters"] = {**text["rope_parameters"], "mrope_section": _sections(read)}
    outer = {key: text[key] for key in (*_OUTER, "eos_token_id", "bos_token_id") if key in text}
    return outer | _tokens(read) | {"text_config": inner, "vision_config": _vision(projector)}


def preprocessor_of(projector: GgufFile) -> dict[str, Any]:
    """What preprocessor_config.json says of how images are prepared; the rest is the family's."""
    read = Metadata(projector)
    found: dict[str, Any] = {
        "image_processor_type": "Glm4vImageProcessor",
        "patch_size": read.number("vision.patch_size", int),
        "temporal_patch_size": 2,
        "merge_size": read.optional("vision.spatial_merge_size", int) or 2,
    }
    for key in ("image_mean", "image_std"):
        value = projector.metadata.get(f"clip.vision.{key}")
        if isinstance(value, list) and len(value) == 3:
            found[key] = value
    return found


def _vision(projector: GgufFile) -> dict[str, Any]:
    read = Metadata(projector)
    return {
        "model_type": "glm4v_vision",
        "hidden_act": "silu",
        "hidden_size": read.number("vision.embedding_length", int),
        "intermediate_size": read.number("vision.feed_forward_length", int),
        "depth": read.number("vision.block_count", int),
        "num_heads": read.number("vision.attention.head_count", int),
        "image_size": read.number("vision.image_size", int),
        "patch_size": read.number("vision.patch_size", int),
        "out_hidden_size": read.number("vision.projection_dim", int),
        "rms_norm_eps": read.number("vision.attention.layer_norm_epsilon", float),
        "spatial_merge_size": read.optional("vision.spatial_merge_size", int) or 2,
        "temporal_patch_size": 2,
        "attention_bias": "v.blk.0.attn_qkv.bias" in projector.tensors,
    }


def _sections(read: Metadata) -> list[int]:
    """Time, height, width; llama.cpp has a fourth one, 0."""
    value = read.file.metadata.get(f"glm4.{SECTIONS}")
    is_list = isinstance(value, list) and all(type(item) is int for item in value)
    if not isinstance(value, list) or not is_list or len(value) < 3 or any(value[3:]):
        raise read.error(SECTIONS, "three numbers of frequencies, and zeros")
    return [int(str(item)) for item in value[:3]]


def _tokens(read: Metadata) -> dict[str, int]:
    """Ids of the tokens around images, which GGUF does not name."""
    tokens = read.file.metadata.get("tokenizer.ggml.tokens")
    found = {}
    for key, text in _TOKENS.items():
        if not isinstance(tokens, list) or text not in tokens:
            raise ModelError(
                f"{read.file.path.name}: its vocabulary has no token {text}, by which images are "
                "placed",
                hint="serve the model's safetensors instead",
            )
        found[key] = tokens.index(text)
    return found
