"""Writes and describes the exported model directory.

Owns the model's shape and every file of the directory; the weights are stored as bfloat16.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tools.demo_model.tokenizer import (
    CHAT_TEMPLATE_PATH,
    END_OF_TEXT,
    OBSERVATION,
    SPECIAL_TOKENS,
    USER,
    token_id,
)
from transformers import Glm4Config, Glm4ForCausalLM

MAX_CONTEXT_TOKENS = 4096


def model_config(tokenizer: Tokenizer) -> Glm4Config:
    """The configuration of the text model for this tokenizer."""
    end_ids = [token_id(tokenizer, text) for text in (END_OF_TEXT, USER, OBSERVATION)]
    return Glm4Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=True,
        pad_token_id=end_ids[0],
        eos_token_id=end_ids,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    )


def export_model(model: Glm4ForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the whole directory; the weights file is replaced in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copyfile(CHAT_TEMPLATE_PATH, directory / "chat_template.jinja")
    config = model.config.to_dict()
    config |= {"architectures": ["Glm4ForCausalLM"], "dtype": "bfloat16"}
    config.pop("_name_or_path", None)
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    _write_json(
        directory / "generation_config.json",
        {
            "do_sample": True,
            "temperature": 0.2,
            "top_p": 0.9,
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": config["pad_token_id"],
        },
    )
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied: the embedding serves both
    }
    partial = directory / "model.safetensors.partial"
    save_file(weights, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes it for its owner alone
    partial.replace(directory / "model.safetensors")


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [text for text in SPECIAL_TOKENS if text != END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_CONTEXT_TOKENS,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
