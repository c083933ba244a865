"""Log-probabilities in OpenAI's shapes for chats and completions, and in vLLM's for prompts.

What a prompt gives can be large (its tokens times the best of each): it is encoded entry by entry,
away from the event loop where it is long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

import msgspec

from hearth.core.request import TokenLogprobs
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.prompt_scores import PromptScores, Score

# Below this a probability is a float's zero; JSON has no infinity. OpenAI's own least value.
LEAST_LOGPROB = -9999.0
# Entries that are made in a thread: some 10 ms of work.
THREAD_THRESHOLD_ENTRIES = 4096

Result = TypeVar("Result")
_encoder = msgspec.json.Encoder()


def logprobs_body(
    tokenizer: Tokenizer, places: Iterable[tuple[int, TokenLogprobs]]
) -> dict[str, Any]:
    """The `logprobs` of a chat's choice or chunk; fields as in schemas.ChoiceLogprobs."""
    content = []
    for token, known in places:
        top = [_entry(tokenizer, other, value) for other, value in known.top]
        content.append({**_entry(tokenizer, token, known.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


async def encoded(scores: PromptScores, make: Callable[[], Result]) -> Result:
    """The result of `make`, which encodes scores; a thread makes it where they are many."""
    if len(scores.prompt) * (1 + scores.num_top) < THREAD_THRESHOLD_ENTRIES:
        return make()
    return await asyncio.to_thread(make)


def prompt_logprobs_body(tokenizer: Tokenizer, scores: PromptScores, num_top: int) -> msgspec.Raw:
    """VLLM's `prompt_logprobs`; fields as in schemas.PromptLogprobsBody."""
    entries = (_ranked(tokenizer, score) for score in scores.scores(num_top))
    return _encoded_list(chain([None], entries))


class LegacyLogprobs:
    """The `logprobs` of one choice of a completion, piece by piece where it is streamed.

    Offsets count characters of the choice's text. Those of an answer go on where the echoed prompt
    ends, and may reach beyond the text where a stop string was cut off.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._detokenizer = tokenizer.detokenizer()
        self._offset = 0

    def of_prompt(self, scores: PromptScores, text: str) -> dict[str, msgspec.Raw]:
        """The tokens of the prompt, which is echoed as `text`."""
        first = (scores.prompt[0], None)
        others = ((score.token, score.known) for score in scores.scores(self._num_top))
        body = self._body(chain([first], others), len(text))
        self._detokenizer, self._offset = self._tokenizer.detokenizer(), len(text)
        return body

    def of_tokens(self, places: Iterable[tuple[int, TokenLogprobs]]) -> dict[str, msgspec.Raw]:
        """The next tokens of the answer."""
        return self._body(places, None)

    def of_both(
        self, scores: PromptScores, text: str, places: Iterable[tuple[int, TokenLogprobs]]
    ) -> dict[str, msgspec.Raw]:
        """An echoed prompt and the whole answer after it."""
        prompt, answer = self.of_prompt(scores, text), self.of_tokens(places)
        return {name: _concatenated(prompt[name], answer[name]) for name in prompt}

    def _body(
        self, places: Iterable[tuple[int, TokenLogprobs | None]], most_offset: int | None
    ) -> dict[str, msgspec.Raw]:
        tokens: list[str] = []
        logprobs: list[float | None] = []
        offsets: list[int] = []
        tops: list[bytes] = []
        for token, known in places:
            tokens.append(self._text(token))
            offset = self._advance(token, tokens[-1])
            offsets.append(offset if most_offset is None else min(offset, most_offset))
            logprobs.append(None if known is None else _finite(known.logprob))
            tops.append(_encoder.encode(None if known is None else self._top(token, known)))
        return {
            "tokens": _raw(tokens),
            "token_logprobs": _raw(logprobs),
            "top_logprobs": _joined(tops),
            "text_offset": _raw(offsets),
        }

    def _advance(self, token: int, text: str) -> int:
        """Where a token's own text begins: behind a character that it shows to be unfinished."""
        piece, begin = self._detokenizer.feed((token,)), self._offset
        self._offset += len(piece)
        return self._offset - len(text) if text and piece.endswith(text) else begin

    def _top(self, token: int, known: TokenLogprobs) -> dict[str, float]:
        """The best and the token itself, as OpenAI's up to `logprobs` + 1 entries."""
        top = {self._text(other): _finite(value) for other, value in known.top}
        return {**top, self._text(token): _finite(known.logprob)}

    def _text(self, token: int) -> str:
        """The token by itself; a part of a character as OpenAI writes it, so that keys differ."""
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _ranked(tokenizer: Tokenizer, score: Score) -> dict[str, dict[str, Any]]:
    """The best tokens and the given one, by id."""
    found = {
        str(token): _with_rank(tokenizer, token, value, rank)
        for rank, (token, value) in enumerate(score.known.top, 1)
    }
    given = _with_rank(tokenizer, score.token, score.known.logprob, score.rank)
    return {**found, str(score.token): given}


def _with_rank(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> dict[str, Any]:
    text = tokenizer.token_bytes(token).decode("utf-8", "replace")
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """`bytes` holds what `token` cannot: a part of a character."""
    raw = tokenizer.token_bytes(token)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def _concatenated(first: msgspec.Raw, second: msgspec.Raw) -> msgspec.Raw:
    """Two encoded lists as one; the first is not empty."""
    rest = bytes(second)[1:]
    return msgspec.Raw(bytes(first)[:-1] + (b"," if rest != b"]" else b"") + rest)


def _joined(entries: Iterable[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"[" + b",".join(entries) + b"]")


def _encoded_list(entries: Iterable[object]) -> msgspec.Raw:
    """One by one: the interpreter goes on with other threads in between."""
    pieces: Iterator[bytes] = map(_encoder.encode, entries)
    return _joined(pieces)
