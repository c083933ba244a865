"""Writes the phone agent's directory: weights in bfloat16, configuration, tokenizer, templates."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tools.demo_model.export import MAX_CONTEXT_TOKENS
from tools.demo_model.phone_batches import MEAN, STD
from tools.demo_model.phone_model import LONGEST_EDGE, MERGE, PATCH, SHORTEST_EDGE
from tools.demo_model.phone_tokenizer import added_special_tokens
from tools.demo_model.phrasing import DATA_DIR
from tools.demo_model.tokenizer import END_OF_TEXT
from transformers import Glm4vConfig

PHONE_TEMPLATE_PATH = DATA_DIR / "phone_chat_template.jinja"


def export_phone_model(
    weights: Mapping[str, torch.Tensor], config: Glm4vConfig, tokenizer: Tokenizer, directory: Path
) -> None:
    """Writes the whole directory; the weights file is replaced in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    template = PHONE_TEMPLATE_PATH.read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = config.to_dict()
    settings |= {"architectures": ["Glm4vForConditionalGeneration"], "dtype": "bfloat16"}
    settings.pop("_name_or_path", None)
    _write_json(directory / "config.json", settings)
    ends = settings["text_config"]["eos_token_id"]
    generation = {
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
        "eos_token_id": ends,
        "pad_token_id": ends[0],
    }
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "preprocessor_config.json", _image_processor())
    _write_json(directory / "tokenizer_config.json", _tokenizer_settings(tokenizer))
    _save_weights(weights, directory)


def _save_weights(weights: Mapping[str, torch.Tensor], directory: Path) -> None:
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in weights.items()
        if name != "lm_head.weight"  # tied: the embedding serves both
    }
    partial = directory / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes it for its owner alone
    partial.replace(directory / "model.safetensors")


def _image_processor() -> dict[str, object]:
    return {
        "image_processor_type": "Glm4vImageProcessor",
        "processor_class": "Glm4vProcessor",
        "size": {"shortest_edge": SHORTEST_EDGE, "longest_edge": LONGEST_EDGE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [round(float(value), 8) for value in MEAN],
        "image_std": [round(float(value), 8) for value in STD],
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
    }


def _tokenizer_settings(tokenizer: Tokenizer) -> dict[str, object]:
    special = [text for text in added_special_tokens(tokenizer) if text != END_OF_TEXT]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Glm4vProcessor",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_CONTEXT_TOKENS,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
