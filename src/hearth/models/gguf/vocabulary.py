"""Tokenizer files from a GGUF file's metadata: what llama.cpp's converter took them from.

Byte-level BPE (`gpt2`) becomes a tokenizer.json; SentencePiece's BPE (`llama`) a tokenizer.model,
whose pieces, scores and types GGUF keeps as they were. How text is cut before BPE is named by
`tokenizer.ggml.pre` only: names that are not known here are refused, since a wrong cut gives wrong
tokens without any sign of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from hearth.core.errors import TokenizerError
from hearth.models.gguf.file import GgufFile

_PREFIX = "tokenizer.ggml."
# Of tokens: what `tokenizer.ggml.token_type` numbers mean.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The cuts of the models' own tokenizer.json files.
_THREE_DIGITS = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_ONE_DIGIT = rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BY_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "llama-bpe": _THREE_DIGITS,
    "llama3": _THREE_DIGITS,
    "llama-v3": _THREE_DIGITS,
    "glm4": _THREE_DIGITS,
    "chatglm-bpe": _THREE_DIGITS,
    "qwen2": _ONE_DIGIT,
    "deepseek-r1-qwen": _ONE_DIGIT,
    "tekken": _BY_CASE,
    "gpt-2": "",  # the library's own
}
_WHOLE_FIRST = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "tekken",
)  # a word that is a token is not cut by merges
_NORMALIZED = ("qwen2",)
HINT = "put the model's tokenizer.json and tokenizer_config.json beside the GGUF file"
# Field numbers of sentencepiece_model.proto (github.com/google/sentencepiece).
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE_MODEL = 2


def vocabulary_files(file: GgufFile) -> dict[str, bytes]:
    """Tokenizer files by name. Raises TokenizerError for a vocabulary that is not read."""
    kind = file.metadata.get(f"{_PREFIX}model")
    if kind == "gpt2":
        files = {"tokenizer.json": _as_json(_byte_level(file))}
    elif kind == "llama":
        files = {"tokenizer.model": _sentencepiece(file)}
    else:
        raise TokenizerError(
            f"{file.path.name}: {_PREFIX}model is {kind!r}; permitted: 'gpt2', 'llama'", hint=HINT
        )
    return files | {"tokenizer_config.json": _as_json(_settings(file))}


def template_of(file: GgufFile) -> str | None:
    """The chat template, where there is one."""
    template = file.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _settings(file: GgufFile) -> dict[str, Any]:
    tokens = _list(file, "tokens", str)
    settings: dict[str, Any] = {}
    for name, short in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"),
                        ("unk_token", "unknown")):  # fmt: skip
        index = file.metadata.get(f"{_PREFIX}{short}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            settings[name] = tokens[index]
    is_sentencepiece = file.metadata.get(f"{_PREFIX}model") == "llama"
    for short in ("bos", "eos"):
        value = file.metadata.get(f"{_PREFIX}add_{short}_token")
        default = is_sentencepiece and short == "bos"
        settings[f"add_{short}_token"] = value if isinstance(value, bool) else default
    if is_sentencepiece:
        settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    template = template_of(file)
    return settings if template is None else settings | {"chat_template": template}


def _byte_level(file: GgufFile) -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE."""
    pre = file.metadata.get(f"{_PREFIX}pre", "")
    if pre not in _CUTS:
        permitted = ", ".join(_CUTS)
        raise TokenizerError(
            f"{file.path.name}: {_PREFIX}pre is {pre!r}; permitted: {permitted}", hint=HINT
        )
    tokens, types = _list(file, "tokens", str), _list(file, "token_type", int)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"{file.path.name}: {len(types):,} token types for {len(tokens):,} tokens", hint=HINT
        )
    vocabulary = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind != _UNUSED}
    merges = [_merge(file, text, vocabulary) for text in _list(file, "merges", str)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, token, is_special=kind == _CONTROL)
            for i, (token, kind) in enumerate(zip(tokens, types))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre in _NORMALIZED else None,
        "pre_tokenizer": _pre_tokenizer(_CUTS[str(pre)]),
        "post_processor": _around(file, tokens),
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_FIRST,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if not pattern:
        return {**_BYTE_LEVEL, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    parts = [{**split, "invert": False}, {**_BYTE_LEVEL, "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": parts}


def _around(file: GgufFile, tokens: list[Any]) -> dict[str, Any] | None:
    """What is put before a text: the beginning's token, where the file asks for it."""
    first = file.metadata.get(f"{_PREFIX}bos_token_id")
    if file.metadata.get(f"{_PREFIX}add_bos_token") is not True or type(first) is not int:
        return None
    if not 0 <= first < len(tokens):
        raise TokenizerError(
            f"{file.path.name}: {_PREFIX}bos_token_id is {first}; permitted: 0 to {len(tokens) - 1}"
        )
    special = {"SpecialToken": {"id": tokens[first], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            tokens[first]: {"id": tokens[first], "ids": [first], "tokens": [tokens[first]]}
        },
    }


def _added(index: int, token: str, *, is_special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **plain, "special": is_special}


def _merge(file: GgufFile, text: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Two tokens; those of byte-level BPE have no spaces."""
    left, space, right = text.partition(" ")
    if not space or left not in vocabulary or right not in vocabulary:
        raise TokenizerError(
            f"{file.path.name}: the merge {text[:40]!r} names no two tokens", hint=HINT
        )
    return [left, right]


def _sentencepiece(file: GgufFile) -> bytes:
    """A SentencePiece model: pieces, and how text is prepared."""
    tokens, types = _list(file, "tokens", str), _list(file, "token_type", int)
    scores = _list(file, "scores", float)
    if not len(tokens) == len(types) == len(scores):
        raise TokenizerError(
            f"{file.path.name}: {len(tokens):,} tokens, {len(scores):,} scores and {len(types):,} "
            "types; permitted: as many of each",
            hint=HINT,
        )
    data = bytearray()
    for token, score, kind in zip(tokens, scores, types):
        piece = _field(1, token.encode()) + b"\x15" + struct.pack("<f", score)
        piece += b"" if kind == _NORMAL else b"\x18" + _varint(kind)
        data += _field(_PIECES, piece)
    has_bytes = _BYTE in types
    # model_type (3) and byte_fallback (35) of the trainer's specification.
    trainer = b"\x18" + _varint(_BPE_MODEL) + b"\x98\x02" + _varint(int(has_bytes))
    data += _field(_TRAINER, trainer)
    prefix = file.metadata.get(f"{_PREFIX}add_space_prefix")
    adds = prefix if isinstance(prefix, bool) else True
    # add_dummy_prefix (3), remove_extra_whitespaces (4), escape_whitespaces (5).
    normalizer = b"\x0a\x08identity\x18" + _varint(int(adds)) + b"\x20\x00\x28\x01"
    return bytes(data + _field(_NORMALIZER, normalizer))


def _field(number: int, data: bytes) -> bytes:
    """A field of protobuf with a length."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _list(file: GgufFile, key: str, kind: type) -> list[Any]:
    value = file.metadata.get(_PREFIX + key)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise TokenizerError(
            f"{file.path.name}: {_PREFIX}{key} is no list of {kind.__name__}", hint=HINT
        )
    return value


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
