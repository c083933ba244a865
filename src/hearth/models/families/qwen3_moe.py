"""Qwen3 with mixtures of experts (arXiv 2505.09388).

Attention is Qwen3's; a window, where there is one, holds for all layers. Layers of
`mlp_only_layers`, and those that `decoder_sparse_step` skips, have a plain MLP. Source of names and
arithmetic: transformers' Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import DType, MlpSpec, ModelSpec, MoeSpec, RouterScoring, RouterSpec
from hearth.models.config_json import ConfigJson, is_integer
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
from hearth.models.sizes import MAX_LAYERS, SizeDefaults, read_sizes
from hearth.models.windows import DEFAULT_WINDOW, all_full, all_layers

DEFAULTS = SizeDefaults(max_position_embeddings=32768, rms_norm_eps=1e-6, num_kv_heads=4)
READS = frozenset({"sliding_window", "num_experts", "num_local_experts"})
EXPERT_SIZE = 768
TOP_K = 8


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Qwen3MoeForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim), context)
    bias = config.flag("attention_bias", default=False)
    shape = _shape(config)
    sparse = _sparse_layers(config, sizes.num_layers)
    decoder = Decoder("qwen3_moe", "Qwen3MoeForCausalLM", config, sizes, rope)

    def mlp(parts: Parts, i: int) -> MlpSpec | MoeSpec:
        return moe(parts, i, shape) if i in sparse else parts.mlp(i)

    attentions = (
        AttentionShape(qkv_bias=bias, out_bias=bias, head_norms=True, window=window)
        for window in _windows(config, sizes.num_layers)
    )
    return decoder.with_llama_layers(dtype, attentions, mlp)


def _shape(config: ConfigJson) -> MoeShape:
    count = read_num_experts(config, "num_experts", "num_local_experts")
    normalize = config.flag("norm_topk_prob", default=False)
    top_k = read_top_k(config, count, TOP_K)
    router = RouterSpec(count, top_k, RouterScoring.SOFTMAX, normalize)
    return MoeShape(router, read_expert_size(config, EXPERT_SIZE))


def _sparse_layers(config: ConfigJson, num_layers: int) -> frozenset[int]:
    """Every `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    step = config.integer("decoder_sparse_step", minimum=1, maximum=MAX_LAYERS, default=1)
    plain = config.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(is_integer(layer) for layer in plain):
        raise config.error("mlp_only_layers", "a list of layer indices, null")
    return frozenset(i for i in range(num_layers) if (i + 1) % step == 0) - set(plain)


def _windows(config: ConfigJson, num_layers: int) -> tuple[int, ...]:
    if not config.flag("use_sliding_window", default=False):
        return all_full(config, num_layers)
    return all_layers(config, num_layers, default=DEFAULT_WINDOW)
