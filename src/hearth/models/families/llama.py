"""Llama (arXiv 2302.13971, 2307.09288): pre-norms, half-paired RoPE, separate gate and up.

Source of names and arithmetic: transformers' LlamaForCausalLM. `attention_bias` adds a bias to q,
k, v and o, `mlp_bias` to gate, up and down.
"""

from __future__ import annotations

from functools import partial

from hearth.core.spec import DType, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes

DEFAULTS = SizeDefaults(max_position_embeddings=2048, rms_norm_eps=1e-6)
READS: frozenset[str] = frozenset()


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a LlamaForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim), context)
    attention_bias = config.flag("attention_bias", default=False)
    shape = AttentionShape(qkv_bias=attention_bias, out_bias=attention_bias)
    mlp_bias = config.flag("mlp_bias", default=False)
    decoder = Decoder("llama", "LlamaForCausalLM", config, sizes, rope)
    mlp = partial(Parts.mlp, has_bias=mlp_bias)
    return decoder.with_llama_layers(dtype, (shape,) * sizes.num_layers, mlp)
