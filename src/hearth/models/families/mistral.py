"""Mistral (arXiv 2310.06825): Llama without biases, with one sliding window in all layers.

Source of names and arithmetic: transformers' MistralForCausalLM. A config that does not mention
`sliding_window` means the 4,096 of the first release; null means none.
"""

from __future__ import annotations

from hearth.core.spec import DType, LayerSpec, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.families.slots import SlotTable, embedding_and_head
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
    table = SlotTable(dtype)
    tied = config.flag("tie_word_embeddings", default=False)
    embedding, head = embedding_and_head(table, sizes, tied=tied)
    parts = Parts(table, sizes)
    layers = tuple(
        LayerSpec(
            attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
            attention=parts.attention(i, AttentionShape(window=window)),
            mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
            mlp=parts.mlp(i),
        )
        for i, window in enumerate(windows)
    )
    return ModelSpec(
        family="mistral",
        architecture="MistralForCausalLM",
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        max_position_embeddings=rope.longest_context,
        layers=layers,
        rope=rope.spec,
        embedding=embedding,
        final_norm=parts.final_norm(),
        head=head,
        slots=tuple(table.slots),
    )
