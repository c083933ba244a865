"""A directory as a phone agent's model comes: a random Glm4v, a tokenizer with the tokens of
images and of `</answer>`, GLM-4.1V's form of chat template, a preprocessor_config.json.

The tokenizer is the text model's with tokens added behind its vocabulary.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.support.vision_models import CONFIG, build_model
from tools.demo_model import TEXT_MODEL_DIR

FIRST_TOKEN = 3072  # behind the built-in vocabulary
TOKENS = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "</answer>")
IMAGE_TOKEN, STOP_TOKEN = FIRST_TOKEN + 1, FIRST_TOKEN + 3
MAX_PIXELS = 2 * 28 * 28 * 60  # 60 tokens an image

# No token ends a turn; an image is one token, which the server repeats.
TEMPLATE = """[gMASK]<sop>
{%- for m in messages -%}
{%- if m.role == 'system' %}<|system|>
{{ m.content if m.content is string else m.content[0].text }}
{%- elif m.role == 'user' %}<|user|>
{% if m.content is string %}{{ m.content }}{% else %}
{%- for item in m.content -%}
{%- if item.type == 'image' or 'image' in item %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif item.type == 'text' %}{{ item.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- elif m.role == 'assistant' %}<|assistant|>
{{ m.content if m.content is string else m.content[0].text }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>
{% endif -%}
"""


def write_directory(directory: Path, seed: int = 5, max_model_len: int = 4096) -> Path:
    """Writes the model; returns the directory."""
    config: dict[str, Any] = deepcopy(CONFIG)
    config["image_start_token_id"], config["image_token_id"] = FIRST_TOKEN, IMAGE_TOKEN
    config["image_end_token_id"] = FIRST_TOKEN + 2
    config["text_config"] |= {
        "vocab_size": FIRST_TOKEN + len(TOKENS),
        "max_position_embeddings": max_model_len,
        "eos_token_id": [0, 4, 6, STOP_TOKEN],
    }
    build_model(seed, config=config).save_pretrained(directory)
    tokenizer = json.loads((TEXT_MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    plain = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [
        {**plain, "id": FIRST_TOKEN + i, "content": token} for i, token in enumerate(TOKENS)
    ]
    _write(directory / "tokenizer.json", tokenizer)
    _write(directory / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    processor = {
        "size": {"shortest_edge": 1568, "longest_edge": MAX_PIXELS},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Glm4vImageProcessor",
    }
    _write(directory / "preprocessor_config.json", processor)
    return directory


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
