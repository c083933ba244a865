"""llama.cpp's names of architectures and tensors, in the words of Hugging Face checkpoints.

Source: `gguf-py/gguf/tensor_mapping.py` and `convert_hf_to_gguf.py` of github.com/ggml-org/
llama.cpp; a test holds the table against the package `gguf`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
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
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"  # a factor for each frequency; goes into the configuration


@dataclass(frozen=True, slots=True)
class Architecture:
    """Of llama.cpp. `is_interleaved`: rows of q and k are stored in pairs that rotate together."""

    class_name: str
    model_type: str
    layer: dict[str, str]
    is_interleaved: bool = False


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", _LAYER, is_interleaved=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _LAYER),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", _LAYER),
    "glm4": Architecture("Glm4ForCausalLM", "glm4", _GLM4_LAYER),
}


def checkpoint_name(architecture: Architecture, name: str) -> str:
    """What a checkpoint calls the tensor; a name that is not known stays as it is."""
    if (found := _IN_LAYER.fullmatch(name)) and found[2] in architecture.layer:
        return f"model.layers.{found[1]}.{architecture.layer[found[2]]}.{found[3]}"
    if (found := _OUTSIDE.fullmatch(name)) and found[1] in _OUTER:
        return f"{_OUTER[found[1]]}.{found[2]}"
    return name
