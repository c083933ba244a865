"""Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388).

Qwen2 is Llama with a bias on q, k and v. Qwen3 has none unless `attention_bias` (then on o too),
and normalizes each query and key head before the rotation. Both may have a window from layer
`max_window_layers` on. Source of names and arithmetic: transformers' Qwen2ForCausalLM and
Qwen3ForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import DType, LayerSpec, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.families.slots import SlotTable, embedding_and_head
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
    table = SlotTable(dtype)
    tied = config.flag("tie_word_embeddings", default=False)
    embedding, head = embedding_and_head(table, sizes, tied=tied)
    parts = Parts(table, sizes)
    layers = tuple(
        LayerSpec(
            attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
            attention=parts.attention(i, _attention(config, architecture, window)),
            mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
            mlp=parts.mlp(i),
        )
        for i, window in enumerate(from_some_layer(config, sizes.num_layers))
    )
    return ModelSpec(
        family="qwen2" if architecture == "Qwen2ForCausalLM" else "qwen3",
        architecture=architecture,
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


def _attention(config: ConfigJson, architecture: str, window: int) -> AttentionShape:
    if architecture == "Qwen2ForCausalLM":
        return AttentionShape(qkv_bias=True, window=window)
    bias = config.flag("attention_bias", default=False)
    return AttentionShape(qkv_bias=bias, out_bias=bias, head_norms=True, window=window)
