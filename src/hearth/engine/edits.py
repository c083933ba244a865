"""What changes a sequence's logits: token counts for penalties, and biases; kept up cheaply.

Everything here follows from the request and the sequence's tokens alone, so that a preemption, a
prefix hit or a resumed request changes nothing. A sequence without penalties, biases, bad words
and min_tokens has no `SequenceEdits`, and costs nothing.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from hearth.core.request import Request
from hearth.core.step import LogitEdits

_FORBIDDEN = -math.inf


class TokenCounts:
    """How often each token was generated; catches up with a sequence token by token.

    The arrays grow by doubling; the views that `view` gives are valid until the next `advance`.
    """

    __slots__ = ("_counts", "_index", "_num_seen", "_tokens")

    def __init__(self, prompt: Rows[int], *, counts_prompt: bool) -> None:
        """`counts_prompt`: tokens of the prompt are listed with a count of 0 (repetition)."""
        listed = np.unique(np.array(prompt if counts_prompt else (), np.int32))
        self._index = {token: i for i, token in enumerate(listed.tolist())}
        self._tokens = np.concatenate((listed, np.zeros(64, np.int32)))
        self._counts = np.zeros(len(self._tokens), np.int32)
        self._num_seen = len(prompt)

    def advance(self, tokens: array[int]) -> None:
        """Counts what is new in `tokens`, the whole sequence."""
        for token in tokens[self._num_seen :]:
            place = self._index.setdefault(token, len(self._index))
            if place == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.zeros(place, np.int32)))
                self._counts = np.concatenate((self._counts, np.zeros(place, np.int32)))
            self._tokens[place] = token
            self._counts[place] += 1
        self._num_seen = len(tokens)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens that count, each once."""
        return self._tokens[: len(self._index)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """Times each was generated."""
        return self._counts[: len(self._index)]

    def with_drafted(self, drafted: Rows[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokens and counts as they will be once these have been generated too."""
        if not drafted:
            return self.tokens, self.counts
        counts = self.counts.copy()
        new: dict[int, int] = {}
        for token in drafted:
            place = self._index.get(token)
            if place is None:
                new[token] = new.get(token, 0) + 1
            else:
                counts[place] += 1
        added = (np.array(list(numbers), np.int32) for numbers in (new, new.values()))
        return np.concatenate((self.tokens, next(added))), np.concatenate((counts, next(added)))


class SequenceEdits:
    """Edits of one sequence's next token, and of those after drafted ones."""

    __slots__ = ("_always", "_bad_phrases", "_longest", "_request", "_stops_until", "counts")

    def __init__(self, request: Request) -> None:
        params = request.sampling
        self._request = request
        self._always: dict[int, float] = dict(params.logit_bias)
        self._always.update({word[0]: _FORBIDDEN for word in params.bad_words if len(word) == 1})
        self._bad_phrases = [list(word) for word in params.bad_words if len(word) > 1]
        self._longest = max((len(word) - 1 for word in self._bad_phrases), default=0)
        self._stops_until = len(request.prompt) + params.min_tokens
        self.counts: TokenCounts | None = None
        repeats = params.repetition_penalty != 1.0
        if repeats or params.frequency_penalty or params.presence_penalty:
            self.counts = TokenCounts(request.prompt, counts_prompt=repeats)

    def biases(self, tokens: array[int], drafted: Rows[int] = ()) -> dict[int, float]:
        """Token → bias for the token after `tokens`, the whole sequence, and the drafted ones.

        Not to be changed.
        """
        forbidden: set[int] = set()
        if len(tokens) + len(drafted) < self._stops_until:
            forbidden |= self._request.stop_token_ids
        if self._bad_phrases:
            start = max(len(self._request.prompt), len(tokens) - self._longest)
            end = [*tokens[start:], *drafted]  # of what was generated
            forbidden |= {last for *begin, last in self._bad_phrases if end[-len(begin) :] == begin}
        if not forbidden:
            return self._always
        return {**self._always, **dict.fromkeys(forbidden, _FORBIDDEN)}


def edits_of(request: Request) -> SequenceEdits | None:
    """None where nothing changes the logits, ever."""
    params = request.sampling
    has_bias = params.logit_bias or params.bad_words
    has_floor = params.min_tokens > 0 and request.stop_token_ids
    has_penalty = (
        params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    )
    return SequenceEdits(request) if has_bias or has_floor or has_penalty else None


class EditArrays:
    """Turns the edits of a step's rows into ragged arrays."""

    def __init__(self, owners: Rows[tuple[Request, SequenceEdits | None]]) -> None:
        """Row r belongs to `owners[r]`; valid for as long as the rows do."""
        params = [request.sampling for request, _ in owners]
        self._edits = [edits for _, edits in owners]
        self._repetition = np.array([p.repetition_penalty for p in params], np.float32)
        self._frequency = np.array([p.frequency_penalty for p in params], np.float32)
        self._presence = np.array([p.presence_penalty for p in params], np.float32)
        self._empty = np.zeros(0, np.int32)

    def build(self, tokens: Rows[array[int]], drafted: Rows[Rows[int]]) -> LogitEdits:
        """The edits for the token after `tokens[r]`, row r's whole sequence, and `drafted[r]`."""
        counted: list[NDArray[np.int32]] = [self._empty]
        counts: list[NDArray[np.int32]] = [self._empty]
        count_start, bias_start = [0], [0]
        bias_tokens: list[int] = []
        biases: list[float] = []
        for edits, known, ahead in zip(self._edits, tokens, drafted, strict=True):
            num_counted = 0
            if edits is not None:
                if edits.counts is not None:
                    edits.counts.advance(known)
                    row_tokens, row_counts = edits.counts.with_drafted(ahead)
                    counted.append(row_tokens)
                    counts.append(row_counts)
                    num_counted = len(row_tokens)
                changes = edits.biases(known, ahead)
                bias_tokens += changes
                biases += changes.values()
            count_start.append(count_start[-1] + num_counted)
            bias_start.append(len(bias_tokens))
        return LogitEdits(
            repetition=self._repetition,
            frequency=self._frequency,
            presence=self._presence,
            count_start=np.array(count_start, np.int32),
            count_tokens=np.concatenate(counted),
            counts=np.concatenate(counts),
            bias_start=np.array(bias_start, np.int32),
            bias_tokens=np.array(bias_tokens, np.int32),
            biases=np.array(biases, np.float32),
        )
