"""The text that models are measured on: read as a stream, cut into sequences of tokens.

A file may be of any size: it is read until enough tokens have come, PIECE_CHARS characters at a
time, cut where a line ends. Each sequence begins with what the tokenizer puts before a text (a
beginning-of-sequence token), as a prompt that is served does; the rest follows without overlap.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from hearth.core.errors import ConfigError
from hearth.core.units import format_count
from hearth.engine.text.tokenizer import Tokenizer
from hearth.quant.builtin_texts import BUILTIN, text_path
from hearth.quant.held_out import SeenText

PIECE_CHARS = 1 << 16
# A line that does not end is cut after so many characters, at a space where there is one.
_MOST_CHARS = 1 << 18
_READ_BYTES = 1 << 16
LEAST_TOKENS = 2  # one that is seen, and one that is predicted

Encode: TypeAlias = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class TextIdentity:
    """Which text it was: SHA-256 of its first `num_bytes` bytes, those that were used."""

    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CutText:
    """How a text becomes sequences. `prefix`: token ids that stand before each, unscored."""

    context: int
    num_tokens: int
    prefix: tuple[int, ...] = ()


class TextSource:
    """One text. Iterate `sequences` once; `identity` is complete when it has ended."""

    def __init__(self, text: str, seen: SeenText | None = None) -> None:
        """`text`: a path, or "builtin"; lines that were `seen` are left out.

        Raises ConfigError for a file that cannot be read.
        """
        self.is_builtin = text == BUILTIN
        self.path = text_path(text, "measuring")
        self._seen = seen
        self._name = BUILTIN if self.is_builtin else self.path.name
        if seen is not None:
            self._name = f"unseen lines of {self._name}"
        self._hash = hashlib.sha256()
        self._num_bytes = 0
        if self.path.is_dir():
            raise ConfigError(f"--text {text} is a directory; permitted: a file, or {BUILTIN}")
        try:
            with self.path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise ConfigError(
                f"--text {text} cannot be read: {error.strerror}",
                hint=f"name a UTF-8 text file, or leave --text out for the {BUILTIN} text",
            ) from error

    def again(self) -> TextSource:
        """The same text from its beginning."""
        return TextSource(BUILTIN if self.is_builtin else str(self.path), self._seen)

    def sequences(self, encode: Encode, cut: CutText) -> Iterator[list[int]]:
        """Sequences of `context` tokens, prefix included, until `num_tokens` of the text are used.

        The last one is shorter where the text ends. Raises ConfigError for a text that is no UTF-8,
        is binary, or has fewer than two tokens.
        """
        room = cut.context - len(cut.prefix)
        left, waiting, num_found = cut.num_tokens, list[int](), 0
        for piece in self._texts():
            waiting += encode(piece)
            while left > 0 and len(waiting) >= min(room, left) > 0:
                size = min(room, left)
                if num_found == 0 or size >= LEAST_TOKENS:
                    yield [*cut.prefix, *waiting[:size]]
                    num_found += 1
                waiting, left = waiting[size:], left - size
            if left <= 0:
                return
        if len(waiting) + (len(cut.prefix) > 0) >= LEAST_TOKENS:
            yield [*cut.prefix, *waiting]
        elif num_found == 0:
            raise ConfigError(
                f"--text {self.path} has {len(waiting)} tokens; permitted: {LEAST_TOKENS} or more",
                hint="a few thousand tokens give a figure worth having",
            )

    def count_tokens(self, encode: Encode, most: int) -> int:
        """Tokens of the text, or `most` where there are more. Raises as `sequences` does."""
        count = 0
        for piece in self.again()._texts():
            count += len(encode(piece))
            if count >= most:
                return most
        return count

    @property
    def identity(self) -> TextIdentity:
        """Of what has been read so far."""
        return TextIdentity(self._name, self._hash.hexdigest(), self._num_bytes)

    def _texts(self) -> Iterator[str]:
        """What is to be measured on."""
        for piece in self._pieces():
            yield piece if self._seen is None else self._seen.unseen(piece)

    def _pieces(self) -> Iterator[str]:
        """The text in whole lines; counts and hashes what it gives."""
        pending = ""
        with self.path.open("rb") as file:
            for text in _decoded(file, self.path):
                pending += text
                while len(pending) >= PIECE_CHARS and (end := _cut_at(pending)):
                    yield self._counted(pending[:end])
                    pending = pending[end:]
        if pending:
            yield self._counted(pending)

    def _counted(self, text: str) -> str:
        raw = text.encode()
        self._hash.update(raw)
        self._num_bytes += len(raw)
        return text


def _cut_at(text: str) -> int:
    """Where to cut; 0: nowhere yet."""
    if end := text.rfind("\n") + 1:
        return end
    if len(text) < _MOST_CHARS:
        return 0
    return max(0, text.rfind(" ")) or len(text)


def _decoded(file: BinaryIO, path: Path) -> Iterator[str]:
    """UTF-8, strictly. Raises ConfigError that names the byte."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while raw := file.read(_READ_BYTES):
        if (zero := raw.find(0)) >= 0:
            raise ConfigError(
                f"--text {path} is binary: byte {format_count(offset + zero)} is zero; permitted: "
                "UTF-8 text"
            )
        yield _decode(decoder, raw, offset, path, final=False)
        offset += len(raw)
    yield _decode(decoder, b"", offset, path, final=True)


def _decode(
    decoder: codecs.IncrementalDecoder, raw: bytes, offset: int, path: Path, *, final: bool
) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        place = format_count(offset - held + error.start)
        raise ConfigError(
            f"--text {path} is not UTF-8: byte {place}: {error.reason}",
            hint="convert it: iconv -f ENCODING -t UTF-8",
        ) from error


def prefix_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer puts before a text."""
    plain = tokenizer.encode("a")
    dressed = tokenizer.encode("a", add_special_tokens=True)
    for first in range(len(dressed) - len(plain) + 1):
        if dressed[first : first + len(plain)] == plain:
            return tuple(dressed[:first])
    return ()
