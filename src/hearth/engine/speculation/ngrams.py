"""NgramIndex: where the end of a text stood before. Integers only; the text is never scanned again.

Two hash tables map the last four and the last two tokens to the place that follows their latest
occurrence; `_links` leads from there to earlier ones of four tokens (hash chains, as in RFC 1951,
section 4). Of the places found, the one with the longest equal text before it wins, of equal ones
the latest. Once a place has been found it is followed for as long as the text goes on as it did
there, so that a long copy costs a comparison a token.

     tokens   … a b c d x y … a b c d ?
                        ▲ source: what followed `length` equal tokens is the guess

A token costs about 1 µs; a prompt is indexed at once by whole arrays (measured: 20 ms for 100,000
tokens). The tables take at most 36 bytes a token, where a KV cache takes thousands.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LONG, SHORT = 4, 2  # tokens of an n-gram
MAX_LENGTH = 32  # longer matches are not told apart
MAX_PROBES = 8  # earlier occurrences that are looked at
SURE_LENGTH = 8  # from here on a match is followed without looking for a better one
BULK = 64  # so many new tokens are taken in by whole arrays

_MULTIPLIER = 1_000_003
_SPREAD = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio, odd
_MASK = (1 << 64) - 1
_LEAST_BITS = 9


class NgramIndex:
    """The n-grams of one growing text."""

    __slots__ = ("_bits", "_links", "_long", "_short", "length", "num_indexed", "source")

    def __init__(self) -> None:
        self.num_indexed = 0
        self.source = 0  # the place whose token is the guess; where `length` is 0, there is none
        self.length = 0  # equal tokens before it, as far as they were counted
        self._bits = 0
        self._links = array("i", (0,))  # [place]: the one before it with the same hash; 0: none
        self._long = array("i")
        self._short = array("i")

    def advance(self, tokens: array[int], on_guess: Callable[[int, bool], None]) -> None:
        """Takes in what is new in `tokens`, the whole text.

        `on_guess(length, is_hit)` is told of every new token that there was a guess for, except
        where many come at once (a prompt).
        """
        num_tokens = len(tokens)
        if num_tokens > 1 << self._bits >> 1:
            self._rebuild(tokens)
        elif num_tokens - self.num_indexed >= BULK:
            self._insert_many(tokens)
        else:
            for position in range(self.num_indexed, num_tokens):
                self._take(tokens, position, on_guess)

    def guess(self, tokens: array[int], most: int) -> array[int]:
        """At most `most` tokens that may follow; none without a match.

        Where the place is near the end of the text, the guess goes on from its own beginning: a
        text that repeats itself with a short period is continued with that period.
        """
        if self.length == 0:
            return array("i")
        found = tokens[self.source : self.source + most]
        period = len(found)
        while len(found) < most:
            found.extend(found[: min(period, most - len(found))])
        return found

    def _take(
        self, tokens: array[int], position: int, on_guess: Callable[[int, bool], None]
    ) -> None:
        """One more token."""
        if self.length:
            is_hit = tokens[self.source] == tokens[position]
            on_guess(self.length, is_hit)
            self.source += 1
            self.length = self.length + 1 if is_hit else 0
        self.num_indexed = place = position + 1
        older_long = older_short = 0
        last, before = tokens[position], tokens[position - 1] if position else 0
        shift = 64 - self._bits
        if place >= LONG:
            pair = tokens[position - 3] * _MULTIPLIER + tokens[position - 2]
            key = (pair * _MULTIPLIER + before) * _MULTIPLIER + last
            slot = (key * _SPREAD & _MASK) >> shift
            older_long = self._long[slot]
            self._long[slot] = place
        self._links.append(older_long)
        if place >= SHORT:
            slot = ((before * _MULTIPLIER + last) * _SPREAD & _MASK) >> shift
            older_short = self._short[slot]
            self._short[slot] = place
        if self.length < SURE_LENGTH:
            self._search(tokens, older_long, older_short)

    def _search(self, tokens: array[int], older_long: int, older_short: int) -> None:
        """Looks for a place with a longer match than the present one."""
        place = older_long
        for _ in range(MAX_PROBES):
            if place == 0:
                break
            self._consider(tokens, place, LONG)
            place = self._links[place]
        if self.length == 0 and older_short:
            self._consider(tokens, older_short, SHORT)

    def _consider(self, tokens: array[int], place: int, least: int) -> None:
        """Takes a place whose match is longer than the present one. Hashes may collide."""
        end, length = self.num_indexed, 0
        while length < MAX_LENGTH and length < place:
            if tokens[place - 1 - length] != tokens[end - 1 - length]:
                break
            length += 1
        if length >= least and length > self.length:
            self.source, self.length = place, length

    def _rebuild(self, tokens: array[int]) -> None:
        """Larger tables: at least twice as many slots as tokens, so that one has room to grow."""
        self._bits = max(_LEAST_BITS, len(tokens).bit_length() + 1)
        self._long = array("i", bytes(4 << self._bits))
        self._short = array("i", bytes(4 << self._bits))
        self._links = array("i", (0,))
        self.num_indexed = 0
        self._insert_many(tokens)

    def _insert_many(self, tokens: array[int]) -> None:
        """Everything new by whole arrays, then one search at its end."""
        begin, end = self.num_indexed, len(tokens)
        self.num_indexed, self.length = end, 0
        first = max(0, begin - LONG + 1)
        text = np.frombuffer(tokens, np.int32)[first:].astype(np.uint64)
        links = np.zeros(end - begin, np.int32)
        older = [0, 0]
        for which, (size, table) in enumerate(((LONG, self._long), (SHORT, self._short))):
            start = max(begin, size - 1)  # the first new token that ends an n-gram
            if start >= end:
                continue
            hashes = self._hashes(text[start - size + 1 - first :], size)
            heads = np.frombuffer(table, np.int32)
            before = _chained(hashes, start + 1, heads)
            older[which] = int(before[-1])
            if size == LONG:
                links[start - begin :] = before
            places = np.arange(start + 1, end + 1, dtype=np.int32)
            np.maximum.at(heads, hashes, places)
        self._links.frombytes(links.tobytes())
        self._search(tokens, older[0], older[1])

    def _hashes(self, text: NDArray[np.uint64], size: int) -> NDArray[np.intp]:
        """The slot of every n-gram of `size` tokens; wraps around at 2⁶⁴ as `_take` does."""
        count = len(text) - size + 1
        keys = text[:count].copy()
        for offset in range(1, size):
            keys = keys * np.uint64(_MULTIPLIER) + text[offset : offset + count]
        return (keys * np.uint64(_SPREAD) >> np.uint64(64 - self._bits)).astype(np.intp)


def _chained(
    hashes: NDArray[np.intp], first_place: int, heads: NDArray[np.int32]
) -> NDArray[np.int32]:
    """For place `first_place` + i, the latest one before it with the same hash, or 0."""
    before = heads[hashes]
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    before[order[1:][same]] = first_place + order[:-1][same]
    return before
