"""Tokens that a model's JSON files add to its vocabulary, and finding them in a text.

For directories without tokenizer.json, which would say all this itself. Ids come from
`added_tokens_decoder` of tokenizer_config.json or, where that is missing, from added_tokens.json.
The named special tokens, `additional_special_tokens` and `extra_special_tokens` that are in
neither have the id that the vocabulary gives them, or the next free one, as in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken

from hearth.core.errors import TokenizerError
from hearth.engine.text.tokenizer_config import SPECIAL_NAMES, token_text

MAX_TOKEN_ID = 2**31 - 1
# Unicode's White_Space, which is what `tokenizers` strips; Python's own notion has four more.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)

_WORD = re.compile(r"\w")


def collect(
    settings: Mapping[str, Any], added: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> dict[int, AddedToken]:
    """Added tokens by id; `added` is the content of added_tokens.json.

    Raises:
        TokenizerError: an entry is malformed, or two entries contradict each other.
    """
    named = _named(settings)
    tokens: dict[int, AddedToken] = {}
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise TokenizerError("added_tokens_decoder in tokenizer_config.json is not an object")
    for token_id, value in decoder.items():
        _put(tokens, token_id, _token(value, is_special=token_text(value) in named))
    for text, token_id in ({} if decoder else added).items():
        _put(tokens, token_id, _token(text, is_special=text in named))
    _put_unnumbered(tokens, named, vocabulary)
    return tokens


def _put_unnumbered(
    tokens: dict[int, AddedToken], named: Mapping[str, object], vocabulary: Mapping[str, int]
) -> None:
    ids = {token.content: token_id for token_id, token in tokens.items()}
    next_id = max([*vocabulary.values(), *tokens], default=-1) + 1
    for text, value in named.items():
        if text in ids:
            continue
        token_id = vocabulary.get(text, next_id)
        next_id += token_id == next_id
        tokens[token_id] = _token(value, is_special=True)


def _named(settings: Mapping[str, Any]) -> dict[str, object]:
    """Special tokens that the settings name, in transformers' order: text → its description.

    Raises TokenizerError where a list of them is none.
    """
    values = [settings.get(name) for name in SPECIAL_NAMES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = settings.get(key) or []
        if not isinstance(extra, Mapping | list):  # a string would be one token a letter
            raise TokenizerError(f"{key} in tokenizer_config.json is neither a list nor an object")
        values += list(extra.values()) if isinstance(extra, Mapping) else extra
    named: dict[str, object] = {}
    for value in values:
        text = token_text(value)
        if text:
            named.setdefault(text, value)
    return named


def _token(value: object, *, is_special: bool) -> AddedToken:
    text = token_text(value)
    if not text:
        raise TokenizerError(
            f"an added token has no text: {value!r}",
            hint="see added_tokens_decoder in tokenizer_config.json, and added_tokens.json",
        )
    flags = value if isinstance(value, Mapping) else {}
    return AddedToken(
        text,
        single_word=bool(flags.get("single_word", False)),
        lstrip=bool(flags.get("lstrip", False)),
        rstrip=bool(flags.get("rstrip", False)),
        normalized=False,
        special=is_special or bool(flags.get("special", False)),
    )


def _put(tokens: dict[int, AddedToken], token_id: object, token: AddedToken) -> None:
    """Enters a token whose id the files give."""
    try:
        number = int(str(token_id))
    except ValueError:
        number = -1
    if not 0 <= number <= MAX_TOKEN_ID:
        raise TokenizerError(
            f"the added token {token.content!r} has the id {token_id!r} "
            f"(permitted: 0 to {MAX_TOKEN_ID})"
        )
    known = tokens.setdefault(number, token)
    if known.content != token.content:
        raise TokenizerError(
            f"the id {number} belongs to two added tokens: {known.content!r} and {token.content!r}",
            hint="added_tokens.json and tokenizer_config.json are of different versions",
        )


class AddedTokenSplitter:
    """Finds added tokens in a text: the leftmost, of those the longest, as `tokenizers` does."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._by_text = {token.content: (token_id, token) for token_id, token in tokens.items()}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Pieces of the text and the added token after each; the last has none.

        Spaces that a token swallows (`lstrip`, `rstrip`) are in no piece.
        """
        end, strips = 0, False
        for match in self._pattern.finditer(text):
            token_id, token = self._by_text[match[0]]
            if token.single_word and _touches_word(text, match):
                continue
            piece = text[end : match.start()]
            piece = piece.lstrip(_SPACES) if strips else piece
            yield (piece.rstrip(_SPACES) if token.lstrip else piece), token_id
            end, strips = match.end(), token.rstrip
        yield (text[end:].lstrip(_SPACES) if strips else text[end:]), None


def _touches_word(text: str, match: re.Match[str]) -> bool:
    before = text[max(match.start() - 1, 0) : match.start()]
    after = text[match.end() : match.end() + 1]
    return bool(_WORD.match(before) or _WORD.match(after))
