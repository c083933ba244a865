"""Phi-3 and Phi-4-mini (arXiv 2404.14219): Llama with fused qkv_proj and gate_up_proj.

Part of each head may be rotated, one window may hold for all layers, and long contexts use
longrope, which older configs call su or yarn. Source of names and arithmetic: transformers'
Phi3ForCausalLM.
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
from hearth.models.windows import all_layers

DEFAULTS = SizeDefaults(max_position_embeddings=4096, rms_norm_eps=1e-5)
READS = frozenset({"sliding_window"})
ALIASES = {"su": "longrope", "yarn": "longrope"}


def build_spec(config: ConfigJson, dtype: DType, served: int | None = None) -> ModelSpec:
    """Maps a Phi3ForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    context = RopeContext(sizes.max_position_embeddings, served)
    rope = read_rope(
        config, RopeShape(sizes.head_dim, partial_default=1.0, aliases=ALIASES), context
    )
    windows = all_layers(config, sizes.num_layers, default=0)
    decoder = Decoder("phi3", "Phi3ForCausalLM", config, sizes, rope)
    attentions = (AttentionShape(fused=True, window=window) for window in windows)
    return decoder.with_llama_layers(dtype, attentions, partial(Parts.mlp, fused=True))
