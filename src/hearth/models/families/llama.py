"""Llama (arXiv 2302.13971, 2307.09288): pre-norms, half-paired RoPE, separate gate and up.

Source of names and arithmetic: transformers' LlamaForCausalLM. `attention_bias` adds a bias to q,
k, v and o, `mlp_bias` to gate, up and down.
"""

from __future__ import annotations

from hearth.core.errors import ModelError
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

DEFAULTS = SizeDefaults(max_position_embeddings=2048, rms_norm_eps=1e-6)


def build_spec(config: ConfigJson, dtype: DType) -> ModelSpec:
    """Maps a LlamaForCausalLM config. Raises ModelError."""
    sizes = read_sizes(config, DEFAULTS)
    rope = read_rope(config, head_dim=sizes.head_dim, pairing=RopePairing.HALF, partial_default=1.0)
    if rope.rotary_dim != sizes.head_dim:
        # transformers ignores the factor for Llama, other engines apply it: no answer is safe.
        raise ModelError(
            f"{config.source}: partial_rotary_factor gives {rope.rotary_dim} of {sizes.head_dim} "
            "rotary dimensions; permitted for Llama: 1",
            param="partial_rotary_factor",
        )
    table = SlotTable(dtype)
    tied = config.flag("tie_word_embeddings", default=False)
    embedding, head = embedding_and_head(table, sizes, tied=tied)
    attention_bias = config.flag("attention_bias", default=False)
    mlp_bias = config.flag("mlp_bias", default=False)
    layers = tuple(
        LayerSpec(
            attention_norm=_norm(table, sizes, i, "attention_norm", "input_layernorm"),
            attention=_attention(table, sizes, i, has_bias=attention_bias),
            mlp_norm=_norm(table, sizes, i, "mlp_norm", "post_attention_layernorm"),
            mlp=_mlp(table, sizes, i, has_bias=mlp_bias),
        )
        for i in range(sizes.num_layers)
    )
    final = table.vector("final_norm", ("model.norm.weight", sizes.hidden_size))
    return ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        max_position_embeddings=sizes.max_position_embeddings,
        layers=layers,
        rope=rope,
        embedding=embedding,
        final_norm=NormSpec(final, sizes.rms_norm_eps),
        head=head,
        slots=tuple(table.slots),
    )


def _norm(table: SlotTable, sizes: DecoderSizes, layer: int, name: str, tensor: str) -> NormSpec:
    source = (f"model.layers.{layer}.{tensor}.weight", sizes.hidden_size)
    return NormSpec(table.vector(f"layers.{layer}.{name}", source), sizes.rms_norm_eps)


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
    out = table.linear(
        f"layers.{layer}.attention_out", sizes.q_rows, (f"{base}.o_proj.weight", sizes.hidden_size)
    )
    qkv_bias = out_bias = None
    if has_bias:
        qkv_bias = table.bias(qkv, *((f"{base}.{part}.bias", rows) for part, rows in parts))
        out_bias = table.bias(out, (f"{base}.o_proj.bias", sizes.hidden_size))
    return AttentionSpec(
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        scale=sizes.head_dim**-0.5,
        qkv=qkv,
        qkv_bias=qkv_bias,
        out=out,
        out_bias=out_bias,
    )


def _mlp(table: SlotTable, sizes: DecoderSizes, layer: int, *, has_bias: bool) -> MlpSpec:
    base = f"model.layers.{layer}.mlp"
    parts = (("gate_proj", sizes.intermediate_size), ("up_proj", sizes.intermediate_size))
    gate_up = table.linear(
        f"layers.{layer}.gate_up",
        sizes.hidden_size,
        *((f"{base}.{part}.weight", rows) for part, rows in parts),
    )
    down = table.linear(
        f"layers.{layer}.down",
        sizes.intermediate_size,
        (f"{base}.down_proj.weight", sizes.hidden_size),
    )
    gate_up_bias = down_bias = None
    if has_bias:
        gate_up_bias = table.bias(gate_up, *((f"{base}.{part}.bias", rows) for part, rows in parts))
        down_bias = table.bias(down, (f"{base}.down_proj.bias", sizes.hidden_size))
    return MlpSpec(sizes.intermediate_size, Activation.SILU, gate_up, down, gate_up_bias, down_bias)
