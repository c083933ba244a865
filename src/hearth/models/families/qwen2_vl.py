"""Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923): Qwen2's decoder with M-RoPE.

The encoder: patches without bias or positions, rotations by row and column, biases everywhere; then
2 × 2 patches are put behind each other, and an MLP brings them into the decoder's space. Qwen2-VL
has layer norms and MLPs of two layers; Qwen2.5-VL RMS norms and gated MLPs, and most of its layers
attend within windows of the image.

Source of names and arithmetic: transformers' Qwen2VLForConditionalGeneration and
Qwen2_5_VLForConditionalGeneration. Checkpoints before
transformers 4.52 name their tensors `model.layers…` and `visual…`, and keep the decoder's sizes at
the top of config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hearth.core.spec import (
    Activation,
    DType,
    ModelSpec,
    NormSpec,
    VisionLayerSpec,
    VisionSpec,
)
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
VISION_DEFAULTS_2_5 = VisionDefaults(3584, 16, 32, eps=1e-6)
FULL_LAYERS = (7, 15, 23, 31)
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
    architecture = str(config.values["architectures"][0])
    is_newer = architecture == "Qwen2_5_VLForConditionalGeneration"
    family = "qwen2_5_vl" if is_newer else "qwen2_vl"
    tied = text.flag("tie_word_embeddings", default=False)
    decoder = Decoder(family, architecture, config, sizes, rope, tied=tied, prefix=TEXT_PREFIX)
    windows = from_some_layer(text, sizes.num_layers)
    attentions = (AttentionShape(qkv_bias=True, window=window) for window in windows)
    spec = decoder.with_llama_layers(dtype, attentions)
    table = SlotTable(dtype, list(spec.slots))
    write = _newer_vision if is_newer else _vision
    encoder = write(config, table, sizes.hidden_size)
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
    norm = parts.layer_norm("final_norm", "merger.ln_q", sizes.hidden_size, sizes.eps)
    return _joined(config, vision, _Layers(parts, layers, norm), hidden_size)


def _newer_vision(config: ConfigJson, table: SlotTable, hidden_size: int) -> VisionSpec:
    """Of Qwen2.5-VL."""
    vision = config.required("vision_config")
    sizes = read_vision_sizes(vision, VISION_DEFAULTS_2_5)
    if vision.integer("out_hidden_size", minimum=1, maximum=1 << 20, default=3584) != hidden_size:
        raise vision.error("out_hidden_size", f"{hidden_size}, the text model's hidden_size")
    if vision.text("hidden_act", default="silu") != "silu":
        raise vision.error("hidden_act", '"silu"')
    inner = vision.integer("intermediate_size", minimum=1, maximum=1 << 20, default=3420)
    side = vision.integer("window_size", minimum=1, maximum=1 << 16, default=112)
    side = side // sizes.merge_size // sizes.patch_size
    if side < 1:
        raise vision.error("window_size", f"{sizes.merge_size * sizes.patch_size} or more")
    listed = vision.values.get("fullatt_block_indexes")
    full = listed if isinstance(listed, list) else list(FULL_LAYERS)
    parts = VisionParts(table, sizes, VISION_PREFIX)
    width = sizes.hidden_size
    layers = tuple(
        VisionLayerSpec(
            attention_norm=parts.norm(f"layers.{i}.attention_norm", f"blocks.{i}.norm1"),
            attention=parts.attention(i, qkv_bias=True, out_bias=True, is_windowed=i not in full),
            mlp_norm=parts.norm(f"layers.{i}.mlp_norm", f"blocks.{i}.norm2"),
            mlp=parts.mlp(f"layers.{i}", f"blocks.{i}.mlp", width, inner, bias=True),
        )
        for i in range(sizes.num_layers)
    )
    norm = parts.norm("final_norm", "merger.ln_q")
    spec = _joined(config, vision, _Layers(parts, layers, norm), hidden_size)
    return replace(spec, window_tokens=side)


@dataclass(frozen=True, slots=True)
class _Layers:
    """What differs: the layers and the norm behind them."""

    parts: VisionParts
    layers: tuple[VisionLayerSpec, ...]
    norm: NormSpec


def _joined(config: ConfigJson, vision: ConfigJson, inner: _Layers, hidden_size: int) -> VisionSpec:
    """What both have around their layers."""
    parts, sizes, joined = inner.parts, inner.parts.sizes, inner.parts.sizes.joined
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
        layers=inner.layers,
        final_norm=inner.norm,
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
