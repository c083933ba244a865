"""GLM-4-0414 (Glm4ForCausalLM).

Four norms a layer, half of each head rotated in neighbouring pairs, gate and up stored as one
matrix, bias on q, k and v only.

Source of names and arithmetic: transformers' Glm4ForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import DType, LayerSpec, ModelSpec, RopePairing
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes

DEFAULTS = SizeDefaults(
    max_position_embeddings=131072, rms_norm_eps=1.5625e-7, head_dim=128, num_kv_heads=2
)
READS: frozenset[str] = frozenset()


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Glm4ForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    rotation = RopeShape(sizes.head_dim, RopePairing.INTERLEAVED, partial_default=0.5)
    rope = read_rope(config, rotation, RopeContext(sizes.max_position_embeddings, served))
    shape = AttentionShape(qkv_bias=config.flag("attention_bias", default=True))
    decoder = Decoder("glm4", "Glm4ForCausalLM", config, sizes, rope)

    # The checkpoint's `post_attention_layernorm` is the norm before the MLP, as in Llama; the norms
    # after a branch carry other names.
    def layer(parts: Parts, i: int) -> LayerSpec:
        return LayerSpec(
            attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
            attention=parts.attention(i, shape),
            post_attention_norm=parts.norm(i, "post_attention_norm", "post_self_attn_layernorm"),
            mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
            mlp=parts.mlp(i, fused=True),
            post_mlp_norm=parts.norm(i, "post_mlp_norm", "post_mlp_layernorm"),
        )

    return decoder.with_layers(dtype, layer)
