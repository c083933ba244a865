"""A tiktoken vocabulary (lines of base64 token and rank) as a byte-level BPE of `tokenizers`.

The conversion is exact. tiktoken merges, of all neighbours that form a token, those of the lowest
rank, the leftmost first; `tokenizers` does the same with the pairs on its list. The list made here
has every way to cut a token in two tokens, in the order of the ranks, so both merge alike: how the
bytes of a token come together depends on these bytes alone (no merge crosses the border of what
ends as one token, and ties fall within one token), hence two pairs of one rank never compete.
What is a token as a whole is found without merging in both (`ignore_merges`). It holds where
every byte is a token and no rank occurs twice; this is checked.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from hearth.core.errors import TokenizerError
from hearth.engine.text import added_tokens
from hearth.engine.text.detokenizer import CHAR_OF_BYTE

_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Family:
    """What the Python class of a tokenizer knows and its files do not say."""

    pattern: str  # cuts a text into words
    normalizes: bool = False  # to NFC
    prefix: tuple[str, ...] = ()  # goes before a text whose special tokens are wanted
    specials: tuple[str, ...] = ()  # follow the ranks
    eos: str | None = None


# Patterns and special tokens: tokenization_chatglm.py of THUDM/glm-4-9b, and tokenization_qwen.py
# of Qwen/Qwen-7B.
_FAMILIES: Mapping[str, _Family] = {
    "ChatGLM4Tokenizer": _Family(
        pattern=rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}", prefix=("[gMASK]", "<sop>")
    ),
    "QWenTokenizer": _Family(
        pattern=rf"{_WORDS}|\p{{N}}|{_REST}",
        normalizes=True,
        specials=(
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            *(f"<|extra_{i}|>" for i in range(205)),
        ),
        eos="<|endoftext|>",
    ),
}


@dataclass(frozen=True, slots=True)
class TiktokenModel:
    """A converted vocabulary, and the special tokens that its family or settings name."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]


def is_tiktoken(data: bytes) -> bool:
    """Whether a file's content is a list of ranks; a SentencePiece model begins with a newline."""
    return _FIRST_LINE.match(data) is not None


def load(
    data: bytes, settings: Mapping[str, Any], added: Mapping[str, Any], path: Path
) -> TiktokenModel:
    """Converts the content of a file.

    Raises:
        TokenizerError: the content is damaged, or its class is none of those known here.
    """
    family = _family(settings, path)
    vocabulary = read_ranks(data, path)
    eos = {"eos_token": family.eos} if family.eos else {}
    extra = settings.get("additional_special_tokens") or []
    if isinstance(extra, list):  # else refused by `collect`
        extra = [*family.specials, *extra]
    named = {**eos, **settings, "additional_special_tokens": extra}
    backend = _backend(vocabulary, family, added_tokens.collect(named, added, vocabulary), path)
    return TiktokenModel(backend, eos)


def _family(settings: Mapping[str, Any], path: Path) -> _Family:
    name = str(settings.get("tokenizer_class") or "")
    if name not in _FAMILIES:
        raise TokenizerError(
            f"{path} is a list of tiktoken ranks, which does not say how a text is cut into words; "
            f"tokenizer_config.json names {name or 'no tokenizer_class'} (known: "
            f"{', '.join(_FAMILIES)})",
            hint="get the model's tokenizer.json, or make one where transformers is installed: "
            "transformers.convert_slow_tokenizer.TikTokenConverter(file, pattern).converted()"
            ".save('tokenizer.json')",
        )
    return _FAMILIES[name]


def read_ranks(data: bytes, path: Path) -> dict[str, int]:
    """Tokens in byte-level writing, in the order of their ranks.

    Raises:
        TokenizerError: a line is malformed, a token or rank occurs twice, or a byte is missing.
    """
    fields = data.split()
    try:
        tokens = [binascii.a2b_base64(field, strict_mode=True) for field in fields[::2]]
        ranks = list(map(int, fields[1::2]))
    except ValueError as error:
        raise _damaged(
            path, f"line {_bad_line(data)} is not a token in base64 and a rank"
        ) from error
    if len(tokens) != len(ranks) or not all(tokens):
        raise _damaged(path, f"line {_bad_line(data)} is not a token in base64 and a rank")
    if len(set(tokens)) < len(tokens) or len(set(ranks)) < len(ranks):
        raise _damaged(path, "a token or a rank occurs twice")
    missing = 256 - sum(len(token) == 1 for token in tokens)
    if missing:
        raise _damaged(path, f"{missing} of the 256 bytes are no tokens")
    if not 0 <= min(ranks) <= max(ranks) <= added_tokens.MAX_TOKEN_ID:
        raise _damaged(path, f"ranks go from {min(ranks)} to {max(ranks)}")
    texts = [token.decode("latin-1").translate(CHAR_OF_BYTE) for token in tokens]
    return dict(sorted(zip(texts, ranks, strict=True), key=lambda item: item[1]))


def _bad_line(data: bytes) -> int:
    """Number of the first line that is not what it should be."""
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip() and not _FIRST_LINE.fullmatch(line.strip() + b"\n"):
            return number
    return data.count(b"\n") + 1


def _damaged(path: Path, what: str) -> TokenizerError:
    return TokenizerError(
        f"{path} is damaged: {what}",
        hint="download the file again, and compare its size with the one at its source",
    )


def merges_of(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to cut a token in two tokens; tokens in the order of `vocabulary`."""
    return [
        (token[:cut], token[cut:])
        for token in vocabulary
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]


def _backend(
    vocabulary: Mapping[str, int],
    family: _Family,
    tokens: Mapping[int, tokenizers.AddedToken],
    path: Path,
) -> tokenizers.Tokenizer:
    merges = merges_of(vocabulary)
    ids = dict(vocabulary)
    taken = set(ids.values())
    for token_id, token in tokens.items():
        if ids.setdefault(token.content, token_id) != token_id or (
            token_id in taken and vocabulary.get(token.content) != token_id
        ):
            raise _damaged(path, f"the id {token_id} of {token.content!r} is that of another token")
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    if family.normalizes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([tokens[token_id] for token_id in sorted(tokens)])
    _add_prefix(backend, family.prefix)
    return backend


def _add_prefix(backend: tokenizers.Tokenizer, prefix: Sequence[str]) -> None:
    known = [(t, i) for t in prefix if (i := backend.token_to_id(t)) is not None]
    if known:
        backend.post_processor = processors.TemplateProcessing(
            single=[*(text for text, _ in known), "$A"], special_tokens=known
        )
