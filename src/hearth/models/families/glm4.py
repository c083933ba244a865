"""GLM-4-0414 (Glm4ForCausalLM).

Four norms a layer, half of each head rotated in neighbouring pairs, gate and up stored as one
matrix, bias on q, k and v only.

Source of names and arithmetic: transformers' Glm4ForCausalLM.
"""

from __future__ import annotations

from hearth.core.spec import (
    Activation,
    AttentionSpec,
    DType,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopePairing,
)
from hearth.models.config_json import ConfigJson
from hearth.models.families.slots import SlotTable, embedding_and_head
from hearth.models.rope import read_rope
from hearth.models.sizes import DecoderSizes, SizeDefaults, read_sizes

DEFAULTS = SizeDefaults(
    max_position_embeddings=131072, rms_norm_eps=1.5625e-7, head_dim=128, num_kv_heads=2
)

# Our name of a norm → the checkpoint's. The checkpoint's `post_attention_layernorm` is the norm
# before the MLP, as in Llama; the norms after a branch carry other names.
NORMS = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_mlp_layernorm",
}


def build_spec(config: ConfigJson, dtype: DType) -> ModelSpec:
    """Maps a Glm4ForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    table = SlotTable(dtype)
    tied = config.flag("tie_word_embeddings", default=False)
    embedding, head = embedding_and_head(table, sizes, tied=tied)
    has_bias = config.flag("attention_bias", default=True)
    layers = tuple(_layer(table, sizes, i, has_bias=has_bias) for i in range(sizes.num_layers))
    final = table.vector("final_norm", ("model.norm.weight", sizes.hidden_size))
    return ModelSpec(
        family="glm4",
        architecture="Glm4ForCausalLM",
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        max_position_embeddings=sizes.max_position_embeddings,
        layers=layers,
        rope=read_rope(
            config,
            head_dim=sizes.head_dim,
            pairing=RopePairing.INTERLEAVED,
            partial_default=0.5,
        ),
        embedding=embedding,
        final_norm=NormSpec(final, sizes.rms_norm_eps),
        head=head,
        slots=tuple(table.slots),
    )


def _layer(table: SlotTable, sizes: DecoderSizes, layer: int, *, has_bias: bool) -> LayerSpec:
    norms = {
        name: NormSpec(
            table.vector(
                f"layers.{layer}.{name}",
                (f"model.layers.{layer}.{tensor}.weight", sizes.hidden_size),
            ),
            sizes.rms_norm_eps,
        )
        for name, tensor in NORMS.items()
    }
    return LayerSpec(
        attention_norm=norms["attention_norm"],
        attention=_attention(table, sizes, layer, has_bias=has_bias),
        mlp_norm=norms["mlp_norm"],
        mlp=_mlp(table, sizes, layer),
        post_attention_norm=norms["post_attention_norm"],
        post_mlp_norm=norms["post_mlp_norm"],
    )


def _attention(
    table: SlotTable, sizes: DecoderSizes, layer: int, *, has_bias: bool
) -> AttentionSpec:
    base = f"model.layers.{layer}.self_attn"
    parts = (("q_proj", sizes.q_rows), ("k_proj", sizes.kv_rows), ("v_proj", sizes.kv_rows))
    qkv = table.linear(
        f"layers.{layer}.qkv",
        sizes.hidden_size,
        *((f"{base}.{part}.weight", rows) for part, rows in parts),
    )
    qkv_bias = None
    if has_bias:
        qkv_bias = table.bias(qkv, *((f"{base}.{part}.bias", rows) for part, rows in parts))
    return AttentionSpec(
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        scale=sizes.head_dim**-0.5,
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=table.linear(
            f"layers.{layer}.attention_out",
            sizes.q_rows,
            (f"{base}.o_proj.weight", sizes.hidden_size),
        ),
    )


def _mlp(table: SlotTable, sizes: DecoderSizes, layer: int) -> MlpSpec:
    base = f"model.layers.{layer}.mlp"
    return MlpSpec(
        sizes.intermediate_size,
        Activation.SILU,
        gate_up=table.linear(
            f"layers.{layer}.gate_up",
            sizes.hidden_size,
            (f"{base}.gate_up_proj.weight", 2 * sizes.intermediate_size),
        ),
        down=table.linear(
            f"layers.{layer}.down",
            sizes.intermediate_size,
            (f"{base}.down_proj.weight", sizes.hidden_size),
        ),
    )
