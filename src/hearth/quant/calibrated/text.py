"""Calibration text as sequences of token ids, all of one length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.errors import ConfigError, ModelError
from hearth.core.units import format_count
from hearth.engine.text.tokenizer import Tokenizer
from hearth.quant.builtin_texts import text_path

# Of a text: some two million tokens, far more than calibration takes. A larger one is read here and
# there.
MOST_BYTES = 8 << 20
PLACES = 64


@dataclass(frozen=True, slots=True)
class Calibration:
    """`tokens` [sequences, length] int64, and `identity` of what they are."""

    tokens: NDArray[np.int64]
    identity: str
    notes: tuple[str, ...] = ()


def read_calibration(source: str, model: Path, num_sequences: int, length: int) -> Calibration:
    """Sequences spread evenly over a text file, or over the text that hearth brings (`builtin`).

    A text shorter than asked for gives fewer sequences, and a note. Raises ConfigError for a file
    that cannot be read or is too short, TokenizerError.
    """
    path = text_path(source, "calibrating")
    try:
        text = _read(path)
    except OSError as error:
        raise ConfigError(f"--calibration {source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--calibration {source} is no text in UTF-8: byte {error.start:,} is wrong",
            hint="name a plain text file, such as one of what the model will be asked",
        ) from error
    ids = Tokenizer.load(model).encode(text)
    return sequences_of(ids, source, num_sequences, length)


def _read(path: Path) -> str:
    """All of a text, or of a large one whole lines from places spread evenly over it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= MOST_BYTES:
            return file.read().decode("utf-8")
        parts, window = [], MOST_BYTES // PLACES
        for place in range(PLACES):
            file.seek(place * (size - window) // (PLACES - 1))
            lines = file.read(window)
            first, last = lines.find(b"\n") + 1 if place else 0, lines.rfind(b"\n") + 1
            parts.append(lines[first:last].decode("utf-8"))
    return "".join(parts)


def sequences_of(ids: Sequence[int], source: str, num_sequences: int, length: int) -> Calibration:
    """As `read_calibration`, of a text's token ids."""
    available = len(ids) // length
    if not available:
        raise ConfigError(
            f"--calibration {source} has {format_count(len(ids))} tokens; permitted: at least "
            f"{format_count(length)}, one sequence",
            hint="take a longer text, or a smaller --calibration-length",
        )
    notes: tuple[str, ...] = ()
    if available < num_sequences:
        note = f"the text of --calibration {source} gives {available} sequences of {length} tokens"
        notes = (f"{note}, {num_sequences} were asked for",)
    count = min(available, num_sequences)
    firsts = [i * available // count * length for i in range(count)]
    tokens = np.array([ids[first : first + length] for first in firsts], np.int64)
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
    return Calibration(tokens, f"{count} x {length} tokens {digest}", notes)


def check_vocabulary(calibration: Calibration, vocab_size: int) -> None:
    """Raises ModelError for tokens that the model has no row for."""
    largest = int(calibration.tokens.max())
    if largest >= vocab_size:
        raise ModelError(
            f"the tokenizer gives token {largest:,}, the model has {vocab_size:,}",
            hint="the tokenizer's files are those of another model",
        )
