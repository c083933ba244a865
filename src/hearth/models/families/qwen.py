"""Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388).

Qwen2 is Llama with a bias on q, k and v. Qwen3 has none unless `attention_bias` (then on o too),
and normalizes each query and key head before the rotation. Both may have a window from layer
`max_window_layers` on. Source of names and arithmetic: transformers' Qwen2ForCausalLM and
Qwen3ForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import DType, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes
from hearth.models.windows import from_some_layer

DEFAULTS = {
    "Qwen2ForCausalLM": SizeDefaults(max_position_embeddings=32768, rms_norm_eps=1e-6),
    "Qwen3ForCausalLM": SizeDefaults(
        max_position_embeddings=32768, rms_norm_eps=1e-6, head_dim=128
    ),
}
READS = frozenset({"sliding_window"})


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Qwen2ForCausalLM or Qwen3ForCausalLM config. Raises ModelError."""
    architecture = str(config.values["architectures"][0])
    sizes = read_sizes(config, DEFAULTS[architecture])
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim), context)
    family = "qwen2" if architecture == "Qwen2ForCausalLM" else "qwen3"
    decoder = Decoder(family, architecture, config, sizes, rope)
    windows = from_some_layer(config, sizes.num_layers)
    attentions = (_attention(config, architecture, window) for window in windows)
    return decoder.with_llama_layers(dtype, attentions)


def _attention(config: ConfigJson, architecture: str, window: int) -> AttentionShape:
    if architecture == "Qwen2ForCausalLM":
        return AttentionShape(qkv_bias=True, window=window)
    bias = config.flag("attention_bias", default=False)
    return AttentionShape(qkv_bias=bias, out_bias=bias, head_norms=True, window=window)
