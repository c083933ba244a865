"""What the JSON files beside a tokenizer say: named special tokens, chat template, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hearth.core.errors import TokenizerError

# In the order in which transformers gives ids to those that have none.
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What tokenizer_config.json and special_tokens_map.json say; names map to token texts."""

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: object = None  # a string, or a list of {"name", "template"}; checked by its user


def read_settings(model_dir: Path) -> dict[str, Any]:
    """special_tokens_map.json, and tokenizer_config.json over it; both may be absent.

    Raises:
        TokenizerError: a file is not a JSON object.
    """
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        merged.update(read_object(model_dir / name))
    return merged


def config_of(settings: Mapping[str, Any]) -> TokenizerConfig:
    """The part of the settings that every tokenizer has."""
    special = {n: t for n in SPECIAL_NAMES if (t := token_text(settings.get(n))) is not None}
    return TokenizerConfig(special_tokens=special, chat_template=settings.get("chat_template"))


def token_text(value: object) -> str | None:
    """A special token is given as its text or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file.

    Raises:
        TokenizerError: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TokenizerError(
            f"{path} is not valid JSON: {error}", hint="download the file again"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value
