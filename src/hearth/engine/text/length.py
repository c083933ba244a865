"""How few tokens a text can give, known without encoding it.

Encoding 30 MB takes 15 s and gigabytes; that such a prompt does not fit a context is plain from
its length and the longest token of the vocabulary. The bound is given only for tokenizers of
which it is certain: byte-level ones, where every byte of the text ends up in some token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

# A normalizer → how many characters it can make into one. Canonical composition joins a letter
# and three marks at most, as in U+1F82.
_SHRINKS_BY: Mapping[str | None, int] = {None: 1, "NFC": 4}
_KEEPING = ("ByteLevel", "Digits", "Sequence", "Split")


def longest_token_chars(backend: tokenizers.Tokenizer, vocabulary: Iterable[str]) -> int | None:
    """No token stands for more characters of a text than this; None: no such bound is known."""
    tokens = set(vocabulary)
    shrink = _SHRINKS_BY.get(_state_of(backend.normalizer).get("type"))
    steps = list(_steps_of(_state_of(backend.pre_tokenizer)))
    added = backend.get_added_tokens_decoder().values()
    is_certain = (
        shrink is not None
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(step.get("type") in _KEEPING for step in steps)
        and all(step.get("behavior") != "Removed" for step in steps)
        and not any(token.lstrip or token.rstrip for token in added)  # they swallow spaces
        and tokens.issuperset(ByteLevel.alphabet())  # an unknown byte would give no token
    )
    return max(map(len, tokens)) * shrink if is_certain and shrink else None


def _steps_of(state: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """A pre-tokenizer and everything in it."""
    yield state
    for inner in state.get("pretokenizers", []):
        yield from _steps_of(inner)


def _state_of(part: Any) -> dict[str, Any]:
    """A part's own description; empty where there is none."""
    state: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return state
