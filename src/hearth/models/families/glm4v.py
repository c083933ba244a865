"""GLM-4.1V and AutoGLM-Phone (Glm4vForConditionalGeneration): GLM-4's decoder behind an encoder.

The decoder is GLM-4's with positions of three kinds (M-RoPE): an image's rows and columns of tokens
have their own. The encoder: patches of two equal frames, a learned grid of positions stretched
bicubically, rotations by row and column, RMS norms, gated MLPs; then 2 × 2 patches are joined by a
convolution, and a gated MLP brings them into the decoder's space.

Source of names and arithmetic: transformers' Glm4vForConditionalGeneration.
"""

from __future__ import annotations

from dataclasses import replace

from hearth.core.spec import (
    Activation,
    DType,
    LayerSpec,
    MergerPart,
    ModelSpec,
    RopePairing,
    VisionLayerSpec,
    VisionSpec,
)
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.families.slots import SlotTable
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

TEXT_DEFAULTS = SizeDefaults(max_position_embeddings=32768, rms_norm_eps=1e-5, num_kv_heads=2)
VISION_DEFAULTS = VisionDefaults(hidden_size=1536, num_heads=12, num_layers=24, eps=1e-5)
MERGER_EPS = 1e-5  # torch's LayerNorm
READS: frozenset[str] = frozenset()
TEXT_PREFIX, VISION_PREFIX = "model.language_model.", "model.visual."


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Glm4vForConditionalGeneration config. Raises ModelError."""
    text, vision = (config.required(key) for key in ("text_config", "vision_config"))
    refuse_unimplemented(text, READS)
    sizes = read_sizes(text, TEXT_DEFAULTS)
    if sizes.head_dim * sizes.num_heads != sizes.hidden_size:
        permitted = f"{sizes.hidden_size // sizes.num_heads}, hidden_size / num_attention_heads"
        raise text.error("head_dim", permitted)  # transformers takes nothing else
    rotation = RopeShape(
        sizes.head_dim,
        RopePairing.INTERLEAVED,
        partial_default=0.5,
        sections_of="mrope_section",
        aliases={"mrope": "default"},
    )
    rope = read_rope(text, rotation, RopeContext(sizes.max_position_embeddings, served))
    shape = AttentionShape(qkv_bias=True)  # whatever attention_bias says
    tied = text.flag("tie_word_embeddings", default=False)
    decoder = Decoder(
        "glm4v",
        "Glm4vForConditionalGeneration",
        config,
        sizes,
        rope,
        tied=tied,
        prefix=TEXT_PREFIX,
    )

    # As in GLM-4: the tensor's post_attention_layernorm is the norm before the MLP.
    def layer(parts: Parts, i: int) -> LayerSpec:
        return LayerSpec(
            attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
            attention=parts.attention(i, shape),
            post_attention_norm=parts.norm(i, "post_attention_norm", "post_self_attn_layernorm"),
            mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
            mlp=parts.mlp(i, fused=True),
            post_mlp_norm=parts.norm(i, "post_mlp_norm", "post_mlp_layernorm"),
        )

    spec = decoder.with_layers(dtype, layer)
    table = SlotTable(dtype, list(spec.slots))
    encoder = _vision(config, vision, table, sizes.hidden_size)
    return replace(spec, slots=tuple(table.slots), vision=encoder)


def _vision(
    config: ConfigJson, vision: ConfigJson, table: SlotTable, hidden_size: int
) -> VisionSpec:
    sizes = read_vision_sizes(vision, VISION_DEFAULTS)
    if vision.text("hidden_act", default="silu") not in ("silu", "swish"):
        raise vision.error("hidden_act", '"silu"')
    out_size = vision.integer("out_hidden_size", minimum=1, maximum=1 << 20, default=4096)
    if out_size != hidden_size:
        raise vision.error("out_hidden_size", f"{hidden_size}, the text model's hidden_size")
    parts = VisionParts(table, sizes, VISION_PREFIX)
    has_bias = vision.flag("attention_bias", default=False)
    image_size = vision.integer("image_size", minimum=1, maximum=1 << 16, default=336)
    grid = image_size // sizes.patch_size
    patch_embed = parts.linear("patch_embed", "patch_embed.proj", sizes.hidden_size, bias=True)
    return VisionSpec(
        image_token_id=config.integer("image_token_id", minimum=0, maximum=1 << 30, default=151343),
        pixel_frames=sizes.temporal_patch_size,
        min_pixels=112 * 112,
        max_pixels=28 * 28 * 15000,
        patch_size=sizes.patch_size,
        temporal_patch_size=sizes.temporal_patch_size,
        merge_size=sizes.merge_size,
        patch_values=sizes.patch_values,
        hidden_size=sizes.hidden_size,
        patch_embed=patch_embed,
        rope=axial_rope(vision, sizes.head_dim),
        embed_norm=parts.norm("embed_norm", "post_conv_layernorm"),
        position_table=parts.grid("positions", "embeddings.position_embedding", grid),
        position_grid=grid,
        layers=tuple(
            _layer(parts, i, out_size, has_bias=has_bias) for i in range(sizes.num_layers)
        ),
        final_norm=parts.norm("final_norm", "post_layernorm"),
        merger=_merger(parts, vision, out_size),
        interleaved=True,
    )


def _layer(parts: VisionParts, i: int, mlp_size: int, *, has_bias: bool) -> VisionLayerSpec:
    """The width of its MLP is the decoder's: transformers has it so."""
    return VisionLayerSpec(
        attention_norm=parts.norm(f"layers.{i}.attention_norm", f"blocks.{i}.norm1"),
        attention=parts.attention(i, qkv_bias=has_bias, out_bias=False),
        mlp_norm=parts.norm(f"layers.{i}.mlp_norm", f"blocks.{i}.norm2"),
        mlp=parts.mlp(f"layers.{i}", f"blocks.{i}.mlp", parts.sizes.hidden_size, mlp_size),
    )


def _merger(parts: VisionParts, vision: ConfigJson, size: int) -> tuple[MergerPart, ...]:
    inner = vision.integer("intermediate_size", minimum=1, maximum=1 << 20, default=13696)
    joined = parts.sizes.joined
    return (
        parts.linear("downsample", "downsample", size, cols=joined, bias=True),
        parts.linear("merger_projection", "merger.proj", size, cols=size),
        parts.layer_norm("merger_norm", "merger.post_projection_norm", size, MERGER_EPS),
        Activation.GELU,
        parts.mlp("merger", "merger", size, inner),
    )
