"""Qwen2-VL (arXiv 2409.12191): Qwen2's decoder with M-RoPE behind an encoder.

The encoder: patches without bias or positions, rotations by row and column, layer norms, biases
everywhere, MLPs of two layers; then 2 × 2 patches are put behind each other, and an MLP brings them
into the decoder's space.

Source of names and arithmetic: transformers' Qwen2VLForConditionalGeneration. Checkpoints before
transformers 4.52 name their tensors `model.layers…` and `visual…`, and keep the decoder's sizes at
the top of config.json.
"""

from __future__ import annotations

from dataclasses import replace

from hearth.core.spec import Activation, DType, ModelSpec, VisionLayerSpec, VisionSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape
from hearth.models.families.slots import SlotTable, with_older_names
from hearth.models.families.vision import (
    VisionDefaults,
    VisionParts,
    axial_rope,
    read_vision_sizes,
)
from hearth.models.features import refuse_unimplemented
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes
from hearth.models.windows import from_some_layer

TEXT_DEFAULTS = SizeDefaults(max_position_embeddings=32768, rms_norm_eps=1e-5)
VISION_DEFAULTS = VisionDefaults(1280, 16, 32, eps=1e-6, width_key="embed_dim")
READS = frozenset({"sliding_window"})
TEXT_PREFIX, VISION_PREFIX = "model.language_model.", "model.visual."
OLDER_NAMES = {TEXT_PREFIX: "model.", VISION_PREFIX: "visual."}
ACTIVATIONS = {"quick_gelu": Activation.QUICK_GELU, "gelu": Activation.GELU}


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Qwen2VLForConditionalGeneration config. Raises ModelError."""
    text = config.section("text_config") or config
    refuse_unimplemented(text, READS)
    sizes = read_sizes(text, TEXT_DEFAULTS)
    rotation = RopeShape(
        sizes.head_dim,
        theta_default=1e6,
        sections_of="mrope_section",
        aliases={"mrope": "default"},
    )
    rope = read_rope(text, rotation, RopeContext(sizes.max_position_embeddings, served))
    decoder = Decoder(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        config,
        sizes,
        rope,
        prefix=TEXT_PREFIX,
    )
    windows = from_some_layer(text, sizes.num_layers)
    attentions = (AttentionShape(qkv_bias=True, window=window) for window in windows)
    spec = decoder.with_llama_layers(dtype, attentions)
    table = SlotTable(dtype, list(spec.slots))
    encoder = _vision(config, table, sizes.hidden_size)
    return replace(spec, slots=with_older_names(table.slots, OLDER_NAMES), vision=encoder)


def _vision(config: ConfigJson, table: SlotTable, hidden_size: int) -> VisionSpec:
    vision = config.required("vision_config")
    sizes = read_vision_sizes(vision, VISION_DEFAULTS)
    if vision.integer("hidden_size", minimum=1, maximum=1 << 20, default=3584) != hidden_size:
        raise vision.error("hidden_size", f"{hidden_size}, the text model's hidden_size")
    name = vision.text("hidden_act", default="quick_gelu")
    if name not in ACTIVATIONS:
        raise vision.error("hidden_act", ", ".join(ACTIVATIONS))
    ratio = vision.integer("mlp_ratio", minimum=1, maximum=64, default=4)
    parts = VisionParts(table, sizes, VISION_PREFIX)
    layers = tuple(
        _layer(parts, i, ratio * sizes.hidden_size, ACTIVATIONS[name])
        for i in range(sizes.num_layers)
    )
    joined = sizes.joined
    return VisionSpec(
        image_token_id=config.integer("image_token_id", minimum=0, maximum=1 << 30, default=151655),
        pixel_frames=1,
        min_pixels=56 * 56,
        max_pixels=28 * 28 * 1280,
        patch_size=sizes.patch_size,
        temporal_patch_size=sizes.temporal_patch_size,
        merge_size=sizes.merge_size,
        patch_values=sizes.patch_values,
        hidden_size=sizes.hidden_size,
        patch_embed=parts.linear("patch_embed", "patch_embed.proj", sizes.hidden_size),
        rope=axial_rope(vision, sizes.head_dim),
        layers=layers,
        final_norm=parts.layer_norm("final_norm", "merger.ln_q", sizes.hidden_size, sizes.eps),
        merger=(
            parts.linear("merger_up", "merger.mlp.0", joined, cols=joined, bias=True),
            Activation.GELU,
            parts.linear("merger_down", "merger.mlp.2", hidden_size, cols=joined, bias=True),
        ),
        interleaved=False,
    )


def _layer(parts: VisionParts, i: int, inner: int, activation: Activation) -> VisionLayerSpec:
    width, eps = parts.sizes.hidden_size, parts.sizes.eps
    names = ("attention_norm", "norm1"), ("mlp_norm", "norm2")
    first, second = (
        parts.layer_norm(f"layers.{i}.{name}", f"blocks.{i}.{tensor}", width, eps)
        for name, tensor in names
    )
    return VisionLayerSpec(
        attention_norm=first,
        attention=parts.attention(i, qkv_bias=True, out_bias=True),
        mlp_norm=second,
        mlp=parts.plain_mlp(f"layers.{i}", f"blocks.{i}.mlp", inner, activation),
    )
