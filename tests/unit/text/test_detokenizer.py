"""Pieces given out one by one are the whole text, and never hold half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.text import builders
from tokenizers import Tokenizer as Backend

from hearth.engine.text.detokenizer import (
    ByteDetokenizer,
    PieceDetokenizer,
    WindowDetokenizer,
)
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig

TEXTS = [
    "hello world",
    "你好，世界！今天天气很好。",
    "🙂🚀👨‍👩‍👧‍👦 flag 🇩🇪 end",
    " leading and trailing ",
    "mixed 中 a 文 é\n\ttab",
    "",
]


def _wrap(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, TokenizerConfig())


BYTE_LEVEL = _wrap(builders.byte_level())
FALLBACK = _wrap(builders.byte_fallback())
FALLBACK_NO_STRIP = _wrap(builders.byte_fallback(strip=False))
METASPACE = {scheme: _wrap(builders.metaspace(scheme)) for scheme in ("always", "first", "never")}
WORD_PIECE = _wrap(builders.word_piece())
BYTE_IDS = {i: bytes([i - 3]) for i in range(3, 259)}  # of the byte-fallback vocabulary


def stream(tokenizer: Tokenizer, ids: list[int], chunk: int = 1) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    return [*pieces, detokenizer.flush()]


def test_each_kind_of_decoder_gets_its_class() -> None:
    assert isinstance(BYTE_LEVEL.detokenizer(), ByteDetokenizer)
    assert isinstance(FALLBACK.detokenizer(), PieceDetokenizer)
    assert isinstance(METASPACE["always"].detokenizer(), PieceDetokenizer)
    assert isinstance(WORD_PIECE.detokenizer(), WindowDetokenizer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, FALLBACK], ids=["bytes", "fallback"])
def test_text_comes_back_whole_and_no_piece_holds_half_a_character(
    tokenizer: Tokenizer, text: str
) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.num_tokens + 3)), st.integers(1, 4))
def test_byte_level_equals_the_full_decode(ids: list[int], chunk: int) -> None:
    expected = BYTE_LEVEL.decode_reference(ids)
    assert "".join(stream(BYTE_LEVEL, ids, chunk)) == expected
    assert BYTE_LEVEL.decode(ids) == expected


def _repaired(ids: list[int], strip: bool) -> str:
    """The library's decode, with each invalid run of bytes decoded for itself (see the module)."""
    runs: list[list[int]] = []
    for token_id in (i for i in ids if i < FALLBACK.num_tokens):
        if runs and (runs[-1][-1] in BYTE_IDS) == (token_id in BYTE_IDS):
            runs[-1].append(token_id)
        else:
            runs.append([token_id])
    known_ids: list[int] = []
    repairs: dict[str, str] = {}
    for run in runs:
        raw = b"".join(BYTE_IDS.get(i, b"") for i in run)
        if run[0] in BYTE_IDS and "\ufffd" in raw.decode("utf-8", "replace"):
            mark = chr(0xE000 + len(repairs))
            repairs[mark] = raw.decode("utf-8", "replace")
            known_ids += [3 + b for b in mark.encode()]
        else:
            known_ids += run
    text = FALLBACK_NO_STRIP.decode_reference(known_ids)
    for mark, repaired in repairs.items():
        text = text.replace(mark, repaired)
    return text.removeprefix(" ") if strip else text


fallback_ids = st.lists(
    st.one_of(
        st.integers(259, FALLBACK.num_tokens + 2),
        st.integers(3, 258),
        st.sampled_from("你好🙂é a").map(lambda c: [3 + b for b in c.encode()]),
    ).map(lambda v: v if isinstance(v, list) else [v])
).map(lambda parts: [i for part in parts for i in part])


@settings(max_examples=300, deadline=None)
@given(fallback_ids, st.integers(1, 4), st.booleans())
def test_byte_fallback_equals_the_full_decode(ids: list[int], chunk: int, strip: bool) -> None:
    tokenizer = FALLBACK if strip else FALLBACK_NO_STRIP
    assert "".join(stream(tokenizer, ids, chunk)) == _repaired(ids, strip)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, FALLBACK.num_tokens - 1)),
    st.integers(1, 4),
    st.sampled_from(sorted(METASPACE)),
)
def test_metaspace_equals_the_full_decode(ids: list[int], chunk: int, scheme: str) -> None:
    tokenizer = METASPACE[scheme]
    assert "".join(stream(tokenizer, ids, chunk)) == tokenizer.decode_reference(ids)


@given(st.lists(st.integers(0, 7)), st.integers(1, 4))
def test_the_window_equals_the_full_decode(ids: list[int], chunk: int) -> None:
    # WordPiece's clean-up may join ", " to the word before it: the spaces are compared away.
    streamed = "".join(stream(WORD_PIECE, ids, chunk)).replace(" ", "")
    assert streamed == WORD_PIECE.decode_reference(ids).replace(" ", "")


@given(st.lists(st.sampled_from([*range(259, FALLBACK.num_tokens), *range(3 + 97, 3 + 100)])))
def test_valid_runs_of_bytes_equal_the_library_alone(ids: list[int]) -> None:
    assert "".join(stream(FALLBACK, ids)) == FALLBACK.decode_reference(ids)


def test_a_character_comes_with_its_last_byte() -> None:
    detokenizer = FALLBACK.detokenizer()
    first, second, third = (3 + byte for byte in "好".encode())
    assert [detokenizer.feed([i]) for i in (first, second, third)] == ["", "", "好"]


def test_unfinished_bytes_become_one_replacement_character_at_the_end() -> None:
    detokenizer = FALLBACK.detokenizer()
    assert detokenizer.feed([3 + byte for byte in "好".encode()[:2]]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_special_tokens_give_no_text_but_added_ones_do() -> None:
    ids = BYTE_LEVEL.encode("<|user|>a<think>é✓b<|endoftext|>")
    assert BYTE_LEVEL.decode(ids) == "a<think>é✓b"
