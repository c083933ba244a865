"""llama.cpp's names of architectures and tensors, in the words of Hugging Face checkpoints.

Source: `gguf-py/gguf/tensor_mapping.py` and `convert_hf_to_gguf.py` of github.com/ggml-org/
llama.cpp; a test holds the table against the package `gguf`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hearth.models.formats.gguf import HALVES, PAIRS, PLAIN

_OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}
_HEAD = "output"
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLM4_LAYER = {
    **_LAYER,
    "ffn_up": "mlp.gate_up_proj",
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_ENCODER = {
    "v.patch_embd.weight": "patch_embed.proj.weight",
    "v.patch_embd.weight.1": "patch_embed.proj.weight.1",  # of the second frame
    "v.patch_embd.bias": "patch_embed.proj.bias",
    "v.position_embd.weight": "embeddings.position_embedding.weight",
    "v.norm_embd.weight": "post_conv_layernorm.weight",
    "v.post_ln.weight": "post_layernorm.weight",
    "mm.patch_merger.weight": "downsample.weight",
    "mm.patch_merger.bias": "downsample.bias",
    "mm.model.fc.weight": "merger.proj.weight",
    "mm.post_norm.weight": "merger.post_projection_norm.weight",
    "mm.post_norm.bias": "merger.post_projection_norm.bias",
    "mm.gate.weight": "merger.gate_proj.weight",
    "mm.up.weight": "merger.up_proj.weight",
    "mm.down.weight": "merger.down_proj.weight",
}
_ENCODER_LAYER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn_qkv": "attn.qkv",
    "attn_out": "attn.proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IN_ENCODER_LAYER = re.compile(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias)")
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"  # a factor for each frequency; goes into the configuration


@dataclass(frozen=True, slots=True)
class Architecture:
    """Of llama.cpp. `rows`: the order of the rows of q and k, see `formats/gguf`."""

    class_name: str
    model_type: str
    layer: dict[str, str]
    rows: str = PLAIN
    prefix: str = "model."


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", _LAYER, PAIRS),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _LAYER),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", _LAYER),
    "glm4": Architecture("Glm4ForCausalLM", "glm4", _GLM4_LAYER),
}
# What llama.cpp calls glm4, too; told by its rotation, and its encoder is in a file of its own.
GLM4V = Architecture(
    "Glm4vForConditionalGeneration", "glm4v", _GLM4_LAYER, HALVES, "model.language_model."
)


def checkpoint_name(architecture: Architecture, name: str) -> str:
    """What a checkpoint calls the tensor; a name that is not known stays as it is."""
    if (found := _IN_LAYER.fullmatch(name)) and found[2] in architecture.layer:
        return f"{architecture.prefix}layers.{found[1]}.{architecture.layer[found[2]]}.{found[3]}"
    if (found := _OUTSIDE.fullmatch(name)) and found[1] in _OUTER:
        return f"{architecture.prefix}{_OUTER[found[1]]}.{found[2]}"
    return "lm_head.weight" if name == f"{_HEAD}.weight" else name


def encoder_name(name: str) -> str:
    """What a checkpoint of GLM-4.1V calls a tensor of its encoder; unknown ones stay."""
    if name in _ENCODER:
        return f"model.visual.{_ENCODER[name]}"
    if (found := _IN_ENCODER_LAYER.fullmatch(name)) and found[2] in _ENCODER_LAYER:
        return f"model.visual.blocks.{found[1]}.{_ENCODER_LAYER[found[2]]}.{found[3]}"
    return name
