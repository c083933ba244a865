"""Reads a model directory's JSON files into `ConfigJson`: typed access with errors that help.

Owns the rule that nothing of a config.json is silently misread: every getter checks the type and
the range and raises ModelError with the key, its value and what is permitted. Imports neither
torch nor transformers nor numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.core.errors import ModelError, ModelNotFoundError
from hearth.core.units import format_bytes

MAX_JSON_BYTES = 64 << 20
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class ConfigJson:
    """The object of one JSON file; `source` names the file in messages."""

    source: str
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.values.get(key) is not None

    def error(self, key: str, permitted: str, *, hint: str | None = None) -> ModelError:
        """The error for a value that is not permitted, for the caller to raise."""
        value = self.values.get(key)
        return ModelError(
            f"{self.source}: {key} is {shown(value)}; permitted: {permitted}", hint=hint, param=key
        )

    def integer(self, key: str, *, minimum: int, maximum: int, default: int | None = None) -> int:
        """An integer in [minimum, maximum]; `default` None: the key must be there."""
        if not self.has(key):
            if default is None:
                raise self._missing(key)
            return default
        value = self.values[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not is_integer(value) or not minimum <= value <= maximum:
            raise self.error(key, f"an integer from {minimum} to {maximum}")
        return int(value)

    def number(
        self, key: str, *, above: float, maximum: float, default: float | None = None
    ) -> float:
        """A finite number in (above, maximum]; `default` None: the key must be there."""
        if not self.has(key):
            if default is None:
                raise self._missing(key)
            return default
        value = self.values[key]
        if not is_number(value) or not above < value <= maximum:
            raise self.error(key, f"a number above {above:g}, at most {maximum:g}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true, false")
        return value

    def text(self, key: str, *, default: str) -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def section(self, key: str) -> ConfigJson | None:
        """A nested object, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object, null")
        return ConfigJson(f"{self.source}: {key}", value)

    def required(self, key: str) -> ConfigJson:
        """A nested object that must be there."""
        section = self.section(key)
        if section is None:
            raise self._missing(key)
        return section

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; absent or null: empty."""
        value = self.values.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if not all(is_integer(item) for item in listed):
            raise self.error(key, "a token id or a list of token ids")
        return tuple(dict.fromkeys(listed))

    def _missing(self, key: str) -> ModelError:
        return ModelError(f"{self.source}: {key} is missing", param=key)


def read_json(path: Path) -> ConfigJson:
    """Reads a JSON object. Raises ModelError when it is unreadable, huge, or no object."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(
                f"{path.name} has {format_bytes(size)}; permitted: {format_bytes(MAX_JSON_BYTES)}"
            )
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds {shown(values)}; permitted: a JSON object")
    return ConfigJson(path.name, values)


def read_config(directory: Path) -> ConfigJson:
    """Reads `config.json` of a model directory.

    Raises ModelNotFoundError when there is no such directory or no config.json in it, ModelError
    when the file is broken.
    """
    if not directory.exists():
        hint = "give a directory with config.json and *.safetensors"
        if not directory.is_absolute() and len(directory.parts) == 2:
            hint = f"if this is a hub id, download it first: hf download {directory} --local-dir …"
        raise ModelNotFoundError(f"model directory {directory} does not exist", hint=hint)
    if not directory.is_dir():
        raise ModelNotFoundError(
            f"{directory} is a file; a model is a directory with config.json and *.safetensors",
            hint=f"did you mean {directory.parent}?",
        )
    path = directory / "config.json"
    if not path.exists():
        raise ModelNotFoundError(
            f"model directory {directory} holds no config.json",
            hint="give the directory that transformers' save_pretrained wrote",
        )
    return read_json(path)


def shown(value: object) -> str:
    """A value for a message: as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)
