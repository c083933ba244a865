"""Mixtral (arXiv 2401.04088): Mistral whose MLP is a mixture of experts in every layer.

The scores of the chosen experts always sum to 1. Source of names and arithmetic: transformers'
MixtralForCausalLM, whose checkpoints keep the names of the first release.
"""

from __future__ import annotations

from hearth.core.spec import DType, ModelSpec, RouterScoring, RouterSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.experts import (
    ExpertNames,
    MoeShape,
    moe,
    read_num_experts,
    read_top_k,
)
from hearth.models.families.parts import AttentionShape
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes
from hearth.models.windows import all_layers

DEFAULTS = SizeDefaults(max_position_embeddings=131072, rms_norm_eps=1e-5, num_kv_heads=8)
READS = frozenset({"sliding_window", "num_local_experts", "num_experts"})
THETA = 1e6
TOP_K = 2
NAMES = ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2")


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a MixtralForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim, theta_default=THETA), context)
    windows = all_layers(config, sizes.num_layers, default=0)
    count = read_num_experts(config, "num_local_experts", "num_experts")
    top_k = read_top_k(config, count, TOP_K)
    router = RouterSpec(count, top_k, RouterScoring.SOFTMAX, normalize=True)
    shape = MoeShape(router, sizes.intermediate_size, NAMES)
    decoder = Decoder("mixtral", "MixtralForCausalLM", config, sizes, rope)
    attentions = (AttentionShape(window=window) for window in windows)
    return decoder.with_llama_layers(dtype, attentions, lambda parts, i: moe(parts, i, shape))
