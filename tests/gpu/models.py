"""Programs of models by their sizes alone, for cards: no checkpoint is read."""

from __future__ import annotations

from hearth.core.program import StepProgram
from hearth.core.spec import DType
from hearth.models.config_json import ConfigJson
from hearth.models.families import family_of
from hearth.models.lower import lower

# The text part of AutoGLM-Phone-9B.
GLM4_9B = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 151552,
    "max_position_embeddings": 65536,
}
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
}


def glm4_program(
    num_layers: int, sizes: dict[str, int] | None = None, dtype: DType = DType.BFLOAT16
) -> StepProgram:
    """GLM-4 of so many layers."""
    values = {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "num_hidden_layers": num_layers,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **(sizes or SMALL),
    }
    config = ConfigJson("sizes", values)
    return lower(family_of("Glm4ForCausalLM").build_spec(config, dtype, None))
