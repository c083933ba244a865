"""Typed access to a GGUF file's metadata."""

from __future__ import annotations

import struct
from typing import Any

from hearth.core.errors import ModelError
from hearth.models.gguf.file import GgufFile, Value


class Metadata:
    """The values of an architecture, whose keys begin with its name."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._prefix = f"{file.metadata.get('general.architecture')}."

    def optional(self, key: str, kind: type, within: Any = None) -> Any:
        """None where it is missing. A list of equal numbers, one a layer, is that number."""
        full = key if within is not None else self._prefix + key
        value = self.file.metadata.get(full)
        if value is None:
            return None
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong(full, value, f"a value of type {kind.__name__}")
        return shortest(value) if isinstance(value, float) else value

    def number(self, key: str, kind: type) -> Any:
        """One that must be there."""
        value = self.optional(key, kind)
        if value is None:
            raise ModelError(f"{self.file.path.name}: metadata {self._prefix}{key} is missing")
        return value

    def error(self, key: str, permitted: str) -> ModelError:
        """The error for a value that is not permitted."""
        full = self._prefix + key
        return self._wrong(full, self.file.metadata.get(full), permitted)

    def _wrong(self, key: str, value: Value | None, permitted: str) -> ModelError:
        text = str(value)[:60]
        return ModelError(f"{self.file.path.name}: {key} is {text}; permitted: {permitted}")


def shortest(value: float) -> float:
    """The number with the fewest digits that float32 rounds to the same.

    Metadata are float32 of what a config.json has as decimals: 1e-5 and not 9.99999975e-06.
    """
    for digits in range(6, 9):
        found = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", found) == struct.pack("<f", value):
                return found
        except OverflowError:  # a double
            return value
    return value
