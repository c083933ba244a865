"""The n-gram index against a search through the whole text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.engine.speculation.ngrams import BULK, LONG, SHORT, NgramIndex

# Few different tokens, so that everything repeats.
TEXTS = st.lists(st.integers(0, 4), max_size=90) | st.lists(st.integers(0, 30), max_size=90)


def ignore(length: int, is_hit: bool) -> None:
    """Nobody wants to know."""


def longest_match(text: Sequence[int]) -> int:
    """The longest n-gram at the end of a text that also ends earlier in it."""
    best = 0
    for place in range(1, len(text)):
        length = 0
        while length < place and text[place - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        best = max(best, length)
    return best


@settings(max_examples=60)
@given(text=TEXTS, pieces=st.lists(st.integers(1, 40), max_size=6))
def test_what_it_finds_stands_there_and_a_repetition_of_four_is_found(
    text: list[int], pieces: list[int]
) -> None:
    """However the text came: token by token, in pieces, or at once."""
    index, known = NgramIndex(), array("i")
    for piece in (*pieces, len(text)):
        known.extend(text[len(known) : len(known) + piece])
        index.advance(known, ignore)
        assert index.num_indexed == len(known)
        best = longest_match(known)
        if best >= LONG:
            assert index.length >= SHORT
        if index.length:
            length, source = min(index.length, index.source), index.source
            assert 0 < source < len(known)
            assert length <= best or length >= 32
            assert known[source - length : source] == known[len(known) - length :]


def test_a_text_in_one_piece_leads_to_the_same_tables_as_token_by_token() -> None:
    text = array("i", [(i * i // 7) % 23 for i in range(3000)])
    whole, grown = NgramIndex(), NgramIndex()
    whole.advance(text, ignore)
    for end in range(1, len(text) + 1):
        grown.advance(text[:end], ignore)
    assert (whole._bits, whole._links) == (grown._bits, grown._links)
    assert (whole._long, whole._short) == (grown._long, grown._short)


def test_a_piece_after_the_prompt_continues_the_chains() -> None:
    text = array("i", [(i * i // 7) % 23 for i in range(900)])
    once, twice = NgramIndex(), NgramIndex()
    once.advance(text, ignore)
    twice._bits = once._bits
    twice._long, twice._short = array("i", bytes(4 << 11)), array("i", bytes(4 << 11))
    assert once._bits == 11
    for end in (300, 300 + BULK, 301 + BULK, 900):
        twice.advance(text[:end], ignore)
    assert (once._links, once._long, once._short) == (twice._links, twice._long, twice._short)


def test_the_longest_of_several_matches_is_followed_and_of_equal_ones_the_latest() -> None:
    text = array("i", [9, 1, 2, 3, 4, 50, 8, 1, 2, 3, 4, 60, 7, 1, 2, 3, 4, 70, 9, 1, 2, 3, 4])
    index = NgramIndex()
    index.advance(text, ignore)
    assert index.guess(text, 1).tolist() == [50]
    text[-5] = 5
    index = NgramIndex()
    index.advance(text, ignore)
    assert index.guess(text, 1).tolist() == [70]


def test_a_short_period_is_continued_beyond_the_end_of_the_text() -> None:
    text = array("i", [1, 2, 3, 1, 2, 3, 1])
    index = NgramIndex()
    index.advance(text, ignore)
    assert index.guess(text, 7).tolist() == [2, 3, 1, 2, 3, 1, 2]


def test_a_text_without_repetition_gives_no_guess() -> None:
    text = array("i", range(300))
    index = NgramIndex()
    index.advance(text, ignore)
    assert index.guess(text, 5).tolist() == []


def test_every_guess_is_compared_with_what_came() -> None:
    told: list[tuple[int, bool]] = []
    text = array("i", [1, 2, 3, 4, 5, 6, 0, 1, 2])
    index = NgramIndex()
    index.advance(text, lambda length, is_hit: told.append((length, is_hit)))
    for token in (3, 4, 99, 8):
        text.append(token)
        index.advance(text, lambda length, is_hit: told.append((length, is_hit)))
    assert told == [(2, True), (3, True), (4, False)]
