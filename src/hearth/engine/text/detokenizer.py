"""Incremental decoding: token ids in, text out, never half a character.

Three decoders, chosen from the tokenizer's own decoder description:

| tokenizer's decoder                                    | class             |
|--------------------------------------------------------|-------------------|
| ByteLevel (GPT-2, Llama 3, Qwen, GLM)                  | ByteDetokenizer   |
| Replace / ByteFallback / Fuse / Strip, Metaspace       | PieceDetokenizer  |
| anything else, or none                                 | WindowDetokenizer |

The first two look at each token once. Pieces given out and the flush, concatenated, are what the
`tokenizers` library decodes from all ids at once, with one deliberate difference: where a run of
byte-fallback tokens is not valid UTF-8 as a whole, the library gives one U+FFFD for every byte of
the run, which cannot be streamed without holding the whole run back; here the valid characters
of the run are given out as they are completed and only its invalid bytes become U+FFFD.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Marks the piece of a byte-fallback token; no UTF-8 text contains the byte 0xFF.
BYTE_MARK = b"\xff"
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")

PieceOf = Callable[[int], bytes | None]


class Detokenizer(Protocol):
    """Decodes the answer of one request."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens complete; bytes of an unfinished character are kept."""
        ...

    def flush(self) -> str:
        """The rest, at the end of the answer: unfinished bytes become U+FFFD."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeRules:
    """How a token's text becomes output, read from the tokenizer's decoder.

    `strip_start`: up to so many `strip_char` are taken from the start of the whole text;
    `metaspace`: this character is a space, but gives nothing in the first token.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_char: str = " "
    strip_start: int = 0
    metaspace: str = ""

    def piece_of(self, token: str) -> bytes:
        """UTF-8 of what the token gives; a byte-fallback token is 0xFF and its byte."""
        if self.byte_level:
            return _byte_level_piece(token)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return BYTE_MARK + bytes([int(match[1], 16)])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


class ByteDetokenizer:
    """Tokens are byte strings; characters may be split anywhere."""

    __slots__ = ("_decoder", "_piece")

    def __init__(self, piece: PieceOf) -> None:
        self._piece = piece
        self._decoder = _Utf8Decoder("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(self._piece(i) or b"" for i in token_ids))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class PieceDetokenizer:
    """Tokens are texts, or single bytes; a run of bytes ends at the next text token."""

    __slots__ = ("_decoder", "_is_first", "_piece", "_rules", "_to_strip")

    def __init__(self, rules: DecodeRules, piece: PieceOf) -> None:
        self._rules = rules
        self._piece = piece
        self._decoder = _Utf8Decoder("replace")
        self._to_strip = rules.strip_start
        self._is_first = True

    def feed(self, token_ids: Sequence[int]) -> str:
        return self._strip("".join(self._decode(token_id) for token_id in token_ids))

    def flush(self) -> str:
        return self._strip(self._decoder.decode(b"", final=True))

    def _decode(self, token_id: int) -> str:
        piece = self._piece(token_id)
        if piece is None:
            return ""
        is_first, self._is_first = self._is_first, False
        if piece.startswith(BYTE_MARK):
            return self._decoder.decode(piece[1:])
        text = piece.decode()
        if self._rules.metaspace:
            text = text.replace(self._rules.metaspace, "" if is_first else " ")
        return self._decoder.decode(b"", final=True) + text

    def _strip(self, text: str) -> str:
        """Takes the leading characters off the whole text, once its beginning is known."""
        while self._to_strip and text:
            if text[0] != self._rules.strip_char:
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


class WindowDetokenizer:
    """For decoders whose tokens cannot be looked at alone: decodes a sliding window.

    The window is the tokens of the last piece given out and those since; a piece is given out when
    it does not end in an unfinished character, or when MAX_PENDING tokens have not finished one.
    """

    MAX_PENDING = 8
    __slots__ = ("_decode", "_ids", "_prefix")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = 0  # ids before this index are context only

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join(self._step(token_id) for token_id in token_ids)

    def flush(self) -> str:
        text = self._new_text()
        self._prefix = len(self._ids)
        return text

    def _step(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        pending = len(self._ids) - self._prefix
        if (not text or text.endswith(REPLACEMENT)) and pending < self.MAX_PENDING:
            return ""
        del self._ids[: self._prefix]
        self._prefix = len(self._ids)
        return text

    def _new_text(self) -> str:
        known = self._decode(self._ids[: self._prefix])
        return self._decode(self._ids)[len(known) :]


def rules_of_decoder(state: dict[str, Any] | None) -> DecodeRules | None:
    """Reads a decoder description of `tokenizers`; None: only the library itself can decode."""
    if state is None:
        return None
    steps = state.get("decoders", []) if state.get("type") == "Sequence" else [state]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return DecodeRules(byte_level=True)
    if kinds == ["Metaspace"]:
        return _metaspace_rules(steps[0])
    return _sequence_rules(steps)


def _metaspace_rules(step: dict[str, Any]) -> DecodeRules:
    mark = str(step.get("replacement", "▁"))
    drops = step.get("prepend_scheme", "always") != "never"
    return DecodeRules(metaspace=mark) if drops else DecodeRules(replacements=((mark, " "),))


def _sequence_rules(steps: Sequence[dict[str, Any]]) -> DecodeRules | None:
    """Replace…, ByteFallback?, Fuse?, Strip? in this order (Llama 2, Mistral, Gemma)."""
    replacements: list[tuple[str, str]] = []
    byte_fallback = fused = False
    strip: dict[str, Any] = {}
    for step in steps:
        kind = step.get("type")
        if kind == "Replace" and not byte_fallback and not fused and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not strip and not step.get("stop"):
            strip = step
        else:
            return None
    return DecodeRules(
        replacements=tuple(replacements),
        byte_fallback=byte_fallback,
        strip_char=strip.get("content", " "),
        strip_start=strip.get("start", 0),
    )


def _byte_level_table() -> dict[str, int]:
    """GPT-2's bijection from printable characters to bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF_CHAR = _byte_level_table()
# Byte → the character that byte-level vocabularies write for it; fits str.translate.
CHAR_OF_BYTE = {byte: char for char, byte in _BYTE_OF_CHAR.items()}


def _byte_level_piece(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:  # an added token is plain text, as the library treats it
        return token.encode("utf-8", "replace")
