"""Gemma 2 (arXiv 2408.00118) and the text models of Gemma 3 (arXiv 2503.19786).

Embeddings are scaled by √hidden_size, norms multiply by 1 + weight and stand before and after each
branch, the gate is a GELU, windowed and full layers alternate. Gemma 2 caps attention scores and
logits; Gemma 3 normalizes query and key heads instead and rotates windowed layers by an angle of
their own. Source of names and arithmetic: transformers' Gemma2ForCausalLM and Gemma3ForCausalLM
(whose attention reads attn_logit_softcapping but does not apply it: set there, it is refused).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hearth.core.spec import Activation, DType, LayerSpec, ModelSpec, RopeSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.rope import ReadRope, RopeShape, read_rope, read_section
from hearth.models.rope_scaling import RopeContext
from hearth.models.rounding import bfloat16
from hearth.models.sizes import DecoderSizes, SizeDefaults, read_sizes
from hearth.models.windows import alternating

GEMMA2 = "Gemma2ForCausalLM"
DEFAULTS = {
    GEMMA2: SizeDefaults(
        max_position_embeddings=8192, rms_norm_eps=1e-6, head_dim=256, num_kv_heads=4
    ),
    "Gemma3ForCausalLM": SizeDefaults(
        max_position_embeddings=131072, rms_norm_eps=1e-6, head_dim=256, num_kv_heads=4
    ),
}
# hidden_act is what the first release wrote; transformers reads hidden_activation only.
READS = frozenset(
    {
        "hidden_act",
        "sliding_window",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    }
)
ACTIVATION = "gelu_pytorch_tanh"
_LARGEST_CAP = 1e6


@dataclass(frozen=True, slots=True)
class _Rotations:
    """Of full and of windowed layers."""

    full: ReadRope
    windowed: RopeSpec | None


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Gemma2ForCausalLM or Gemma3ForCausalLM config. Raises ModelError."""
    architecture = str(config.values["architectures"][0])
    sizes = read_sizes(config, DEFAULTS[architecture])
    if config.text("hidden_activation", default=ACTIVATION) != ACTIVATION:
        raise config.error("hidden_activation", ACTIVATION)
    is_gemma2 = architecture == GEMMA2
    rotations = _read_ropes(config, sizes, served, is_gemma2=is_gemma2)
    pattern = 2 if is_gemma2 else _pattern(config)
    shape = _attention(config, is_gemma2=is_gemma2)
    windows = alternating(config, sizes.num_layers, pattern=pattern)
    decoder = Decoder(
        "gemma2" if is_gemma2 else "gemma3",
        architecture,
        config,
        sizes,
        rotations.full,
        Activation.GELU_TANH,
        norm_offset=1.0,
        tied=True,
    )

    def layer(parts: Parts, i: int) -> LayerSpec:
        rope = rotations.windowed if windows[i] else None
        return _layer(parts, i, replace(shape, window=windows[i], rope=rope))

    spec = decoder.with_layers(dtype, layer)
    return replace(
        spec,
        # Gemma 3 gives the context that its scaling leads to.
        max_position_embeddings=spec.max_position_embeddings
        if is_gemma2
        else sizes.max_position_embeddings,
        embedding_scale=_embedding_scale(sizes.hidden_size, dtype),
        logit_soft_cap=_cap(config, "final_logit_softcapping", 30.0 if is_gemma2 else 0.0),
    )


def _layer(parts: Parts, i: int, shape: AttentionShape) -> LayerSpec:
    return LayerSpec(
        attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
        attention=parts.attention(i, shape),
        post_attention_norm=parts.norm(i, "post_attention_norm", "post_attention_layernorm"),
        mlp_norm=parts.norm(i, "mlp_norm", "pre_feedforward_layernorm"),
        mlp=parts.mlp(i),
        post_mlp_norm=parts.norm(i, "post_mlp_norm", "post_feedforward_layernorm"),
    )


def _attention(config: ConfigJson, *, is_gemma2: bool) -> AttentionShape:
    key = "attn_logit_softcapping"
    if not is_gemma2 and config.has(key):
        raise config.error(key, "null for Gemma 3")
    bias = config.flag("attention_bias", default=False)
    scalar = config.number("query_pre_attn_scalar", above=0.0, maximum=1e6, default=256.0)
    return AttentionShape(
        qkv_bias=bias,
        out_bias=bias,
        head_norms=not is_gemma2,
        scale=scalar**-0.5,
        soft_cap=_cap(config, key, 50.0) if is_gemma2 else 0.0,
    )


def _pattern(config: ConfigJson) -> int:
    key = "sliding_window_pattern"
    if not config.has(key):
        key = "_sliding_window_pattern"
    return config.integer(key, minimum=1, maximum=1024, default=6)


def _cap(config: ConfigJson, key: str, default: float) -> float:
    """Null switches a cap off; where the key is absent, the config class has a default."""
    if key in config.values and not config.has(key):
        return 0.0
    if not config.has(key):
        return default
    return config.number(key, above=0.0, maximum=_LARGEST_CAP)


def _embedding_scale(hidden_size: int, dtype: DType) -> float:
    """√hidden_size in the precision of the embedding, as the models were trained."""
    scale = float(hidden_size**0.5)
    return bfloat16(scale) if dtype is DType.BFLOAT16 else scale


def _read_ropes(
    config: ConfigJson, sizes: DecoderSizes, served: int | None, *, is_gemma2: bool
) -> _Rotations:
    context = RopeContext(sizes.max_position_embeddings, served)
    if is_gemma2:
        return _Rotations(read_rope(config, RopeShape(sizes.head_dim), context), None)
    both = config.section("rope_parameters")
    full = config.section("rope_scaling") or (both.section("full_attention") if both else None)
    windowed = both.section("sliding_attention") if both else None
    local_theta = config.number("rope_local_base_freq", above=0.0, maximum=1e15, default=10000.0)
    shape = RopeShape(sizes.head_dim, theta_default=1_000_000.0)
    # The theta at the top of the file is that of the full layers.
    bare = ConfigJson(config.source, {})
    local = read_section(bare, windowed, replace(shape, theta_default=local_theta), context)
    return _Rotations(read_section(config, full, shape, context), local.spec)
