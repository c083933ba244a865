"""Mistral (arXiv 2310.06825): Llama without biases, with one sliding window in all layers.

Source of names and arithmetic: transformers' MistralForCausalLM. A config that does not mention
`sliding_window` means the 4,096 of the first release; null means none.
"""

from __future__ import annotations

from hearth.core.spec import DType, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.decoder import Decoder
from hearth.models.families.parts import AttentionShape
from hearth.models.rope import RopeShape, read_rope
from hearth.models.rope_scaling import RopeContext
from hearth.models.sizes import SizeDefaults, read_sizes
from hearth.models.windows import DEFAULT_WINDOW, all_layers

DEFAULTS = SizeDefaults(max_position_embeddings=131072, rms_norm_eps=1e-6, num_kv_heads=8)
READS = frozenset({"sliding_window"})


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a MistralForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(config, RopeShape(sizes.head_dim), context)
    windows = all_layers(config, sizes.num_layers, default=DEFAULT_WINDOW)
    decoder = Decoder("mistral", "MistralForCausalLM", config, sizes, rope)
    return decoder.with_llama_layers(dtype, (AttentionShape(window=window) for window in windows))
