"""What a client asks for and what it gets back, as plain data that crosses the process border."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hearth.core.images import ImageInput


class FinishReason(StrEnum):
    """Why a request ended; exactly one per accepted request."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens or the context's end
    CANCELLED = "cancelled"  # the client went away
    ERROR = "error"  # it could not be completed; the event's message says why


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Ranges are checked where the request enters.

    temperature ≥ 0 (0: greedy); 0 < top_p ≤ 1; top_k ≥ 0 (0: all); 0 ≤ min_p ≤ 1;
    0 ≤ seed < 2⁶⁴; penalties are finite, repetition_penalty > 0 (1: none). `logit_bias`: (token,
    finite bias), a token once. `bad_words`: token sequences whose last token is forbidden where
    the others have just been generated. Before `min_tokens` are generated no stop token is chosen.
    `num_logprobs`: −1 none, 0 those of the chosen tokens, k of the k best at each place too;
    `num_prompt_logprobs`: the same for the tokens of the prompt after the first.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    num_logprobs: int = -1
    num_prompt_logprobs: int = -1


@dataclass(frozen=True, slots=True)
class Request:
    """A frozen intent: complete, so that it can be submitted again after a crash.

    `generated` holds tokens already produced for this request (resuming): they count towards
    `max_tokens` and are not emitted again. `cache_key` separates prefix-cache entries (an adapter,
    a tenant); equal keys share. `max_tokens` ≥ 0 has been resolved against the context; with 0
    nothing is generated: the prompt is scored, where its log-probabilities are asked for. A request
    that brings generated tokens along had those of its prompt before, and gets none. `choice`
    numbers the answers to one prompt (n > 1): same seed, other draws; those after the first name
    the first's id in `follows`, and wait until its prompt is computed, to find it in the prefix
    cache. `deadline`: the `time.monotonic` (one clock for all processes of a machine) at which it
    ends, complete or not; 0: never. `images`: in the order of their tokens, which do not overlap.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: frozenset[int] = frozenset()
    generated: tuple[int, ...] = ()
    cache_key: bytes = b""
    priority: int = 0  # lower goes first
    choice: int = 0
    follows: str = ""
    deadline: float = 0.0
    images: tuple[ImageInput, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one place, of the raw logits: before edits and temperature."""

    logprob: float  # of the chosen token
    top: tuple[tuple[int, float], ...] = ()  # the best tokens, best first


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt's tokens from index `start` on, as packed native arrays.

    All events of a request together describe each token but the first exactly once, in order. For
    n tokens: `logprobs` float32 [n], `ranks` int32 [n] (1: the best), `top_tokens` int32
    [n, num_top] (−1: the vocabulary is smaller), `top_logprobs` float32 [n, num_top].
    """

    start: int
    num_top: int
    logprobs: bytes
    ranks: bytes
    top_tokens: bytes = b""
    top_logprobs: bytes = b""


@dataclass(slots=True)
class TokenEvent:
    """News of one request after a step: new tokens and, last of all, why it ended.

    Not frozen, since one is made for every token: that would take three times as long.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token: int | None = None  # the stop token that ended it; it is not among `tokens`
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    message: str = ""
    error_code: str = ""  # with FinishReason.ERROR: the `code` of the error tree
    hashes: tuple[int, ...] = field(default=())  # debug: logits hash per new token
    logprobs: tuple[TokenLogprobs, ...] = ()  # one a token, where the request asks
    prompt_logprobs: PromptLogprobs | None = None  # before the first token, where it asks
