"""Llama (arXiv 2302.13971, 2307.09288): pre-norms, half-paired RoPE, separate gate and up.

Source of names and arithmetic: transformers' LlamaForCausalLM. `attention_bias` adds a bias to q,
k, v and o, `mlp_bias` to gate, up and down.
"""

from __future__ import annotations

from hearth.core.spec import DType, LayerSpec, ModelSpec
from hearth.models.config_json import ConfigJson
from hearth.models.families.parts import AttentionShape, Parts
from hearth.models.families.slots import SlotTable, embedding_and_head
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
    table = SlotTable(dtype)
    tied = config.flag("tie_word_embeddings", default=False)
    embedding, head = embedding_and_head(table, sizes, tied=tied)
    parts = Parts(table, sizes)
    attention_bias = config.flag("attention_bias", default=False)
    shape = AttentionShape(qkv_bias=attention_bias, out_bias=attention_bias)
    mlp_bias = config.flag("mlp_bias", default=False)
    layers = tuple(
        LayerSpec(
            attention_norm=parts.norm(i, "attention_norm", "input_layernorm"),
            attention=parts.attention(i, shape),
            mlp_norm=parts.norm(i, "mlp_norm", "post_attention_layernorm"),
            mlp=parts.mlp(i, has_bias=mlp_bias),
        )
        for i in range(sizes.num_layers)
    )
    return ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
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
