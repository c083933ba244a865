"""GLM-4.5 and GLM-4.6 (Glm4MoeForCausalLM, arXiv 2508.06471).

Llama's norms, half of each head rotated in the first and second half of it, head norms where
`use_qk_norm`; behind `first_k_dense_replace` plain layers, experts that a sigmoid router chooses by
score plus a correction, from the best groups, beside a shared expert. Tensors of the layers that
predict further tokens are left unread. Source of names and arithmetic: transformers'
Glm4MoeForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import DType, MlpSpec, ModelSpec, MoeSpec, RouterScoring, RouterSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.experts import (
    MoeShape,
    moe,
    read_expert_size,
    read_num_experts,
    read_top_k,
)
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import MAX_LAYERS, MAX_WIDTH, SizeDefaults, read_sizes

DEFAULTS = SizeDefaults(max_position_embeddings=131072, rms_norm_eps=1e-5, num_kv_heads=8)
READS = frozenset({"n_routed_experts", "num_local_experts", "num_experts", "use_qk_norm"})
EXPERT_SIZE = 1408
TOP_K = 8
_LARGEST_SCALE = 1e6


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Glm4MoeForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim, partial_default=0.5), context)
    attention = AttentionShape(
        qkv_bias=config.flag("attention_bias", default=False),
        head_norms=config.flag("use_qk_norm", default=False),
    )
    first = config.integer("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS, default=1)
    shape = _shape(config)
    decoder = Decoder("glm4_moe", "Glm4MoeForCausalLM", config, sizes, rope)

    def mlp(parts: Parts, i: int) -> MlpSpec | MoeSpec:
        return moe(parts, i, shape) if i >= first else parts.mlp(i)

    return decoder.with_llama_layers(dtype, (attention,) * sizes.num_layers, mlp)


def _shape(config: ConfigJson) -> MoeShape:
    size = read_expert_size(config, EXPERT_SIZE)
    num_shared = config.integer("n_shared_experts", minimum=0, maximum=MAX_WIDTH, default=1)
    return MoeShape(_router(config), size, has_bias=True, shared_size=num_shared * size)


def _router(config: ConfigJson) -> RouterSpec:
    count = read_num_experts(config, "n_routed_experts", "num_local_experts", "num_experts")
    groups = config.integer("n_group", minimum=1, maximum=count, default=1)
    if count % groups or (groups > 1 and count // groups < 2):
        raise config.error("n_group", f"a divisor of {count} experts that leaves two in a group")
    top_groups = config.integer("topk_group", minimum=1, maximum=groups, default=1)
    top_k = read_top_k(config, count, TOP_K)
    if top_k > count // groups * top_groups:
        permitted = f"1 to {count // groups * top_groups}, the experts of {top_groups} groups"
        raise config.error("num_experts_per_tok", permitted)
    return RouterSpec(
        num_experts=count,
        top_k=top_k,
        scoring=RouterScoring.SIGMOID,
        normalize=config.flag("norm_topk_prob", default=True),
        scale=config.number(
            "routed_scaling_factor", above=0.0, maximum=_LARGEST_SCALE, default=1.0
        ),
        num_groups=groups,
        top_groups=top_groups,
    )
