"""Chat: from messages to a submitted request, and from token events to text.

Owns the one terminal event of a request: it ends with the engine's own event, with a stop string
(the engine's request is then cancelled, and usage counts up to the stop), or with an error. Knows
nothing of HTTP.

    messages ─ render ─ encode ─ check against the context ─▶ ChatJob ─ submit ─▶ RunningChat
    TokenEvent ─ detokenize ─ stop strings ─▶ ChatDelta
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hearth.core.errors import (
    ContextOverflowError,
    EngineDeadError,
    EngineError,
    HearthError,
    OverloadedError,
    RequestError,
)
from hearth.core.request import FinishReason, Request, TokenEvent
from hearth.core.units import format_count
from hearth.engine.text.stop import StopMatcher
from hearth.serve.engine_port import EnginePort
from hearth.serve.model import ServedModel
from hearth.serve.sampling import SamplingChoices, resolve_sampling


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What a client asks for, checked for types and ranges, free of HTTP."""

    messages: tuple[dict[str, Any], ...]
    model: str | None = None
    sampling: SamplingChoices = field(default_factory=SamplingChoices)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A request that fits the context and can be submitted."""

    request: Request
    model_name: str
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request so far; those after a stop string do not count."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """New text; the last delta has a finish reason ("stop" or "length")."""

    text: str
    finish_reason: str | None = None


class ChatService:
    """Answers chats with one model on one engine."""

    def __init__(self, engine: EnginePort, model: ServedModel) -> None:
        self.engine = engine
        self.model = model

    async def prepare(self, call: ChatCall) -> ChatJob:
        """Renders, encodes and checks. Raises RequestError and its kinds."""
        model_name = self.model.resolve_name(call.model)
        self._check_token_ids(call.stop_token_ids)
        prompt = await self._encode(call)
        stops = call.stop_token_ids | (frozenset() if call.ignore_eos else self._eos)
        request = Request(
            request_id=f"chatcmpl-{uuid.uuid4().hex}",
            prompt=tuple(prompt),
            max_tokens=self._max_tokens(len(prompt), call.max_tokens),
            sampling=resolve_sampling(call.sampling, self.model.defaults),
            stop_token_ids=stops,
        )
        return ChatJob(request, model_name, call.stop)

    def submit(self, job: ChatJob) -> RunningChat:
        """Starts the job; the caller must close what it gets.

        Raises OverloadedError or EngineDeadError.
        """
        return RunningChat(self.engine, self.model, job)

    @property
    def _eos(self) -> frozenset[int]:
        return self.model.stop_token_ids

    async def _encode(self, call: ChatCall) -> list[int]:
        text = self.model.text
        if text.template is None:
            raise RequestError(
                "this model has no chat template, so it cannot take messages",
                hint="put a chat_template.jinja into the model directory and restart",
                param="messages",
            )
        rendered = text.template.render(call.messages, variables=call.template_variables)
        self._check_length(rendered)
        prompt = await text.tokenizer.encode_async(rendered)
        if not prompt:
            raise RequestError("the messages render to an empty prompt", param="messages")
        return prompt

    def _check_length(self, rendered: str) -> None:
        """Refuses what cannot fit, however it is encoded. Raises ContextOverflowError."""
        least = self.model.text.tokenizer.least_tokens(rendered)
        limit = self.model.max_model_len
        if least >= limit:
            raise ContextOverflowError(
                f"the prompt has {format_count(len(rendered))} characters, which are "
                f"{format_count(least)} tokens or more, but the context (max_model_len) is "
                f"{format_count(limit)} tokens",
                hint="shorten the messages",
                param="messages",
            )

    def _check_token_ids(self, token_ids: frozenset[int]) -> None:
        outside = sorted(i for i in token_ids if i >= self.model.vocab_size)
        if outside:
            raise RequestError(
                f"stop_token_ids: {outside[0]} is outside the vocabulary "
                f"(permitted: 0 to {self.model.vocab_size - 1})",
                param="stop_token_ids",
            )

    def _max_tokens(self, num_prompt: int, asked: int | None) -> int:
        """The answer's bound, resolved against the context. Raises ContextOverflowError."""
        limit = self.model.max_model_len
        room = limit - num_prompt
        if room < 1 or (asked is not None and asked > room):
            wanted = "" if asked is None else f" + max_tokens {format_count(asked)}"
            hint = (
                f"shorten the messages by {format_count(1 - room)} tokens or more"
                if room < 1
                else f"set max_tokens to {format_count(room)} or less, or shorten the messages"
            )
            raise ContextOverflowError(
                f"the prompt has {format_count(num_prompt)} tokens{wanted}, but the context "
                f"(max_model_len) is {format_count(limit)} tokens",
                hint=hint,
                param="messages" if room < 1 else "max_tokens",
            )
        return room if asked is None else asked


class RunningChat:
    """One submitted chat. `deltas` is consumed once; `close` frees the engine's sequence."""

    def __init__(self, engine: EnginePort, model: ServedModel, job: ChatJob) -> None:
        self.job = job
        self._engine = engine
        self._detokenizer = model.text.tokenizer.detokenizer()
        self._matcher = StopMatcher(job.stop)
        self._num_completion = 0
        self._num_cached = 0
        self._is_ended = False
        self._events = engine.submit(job.request)

    @property
    def usage(self) -> Usage:
        """Counts so far; final once `deltas` has ended."""
        return Usage(len(self.job.request.prompt), self._num_completion, self._num_cached)

    def close(self) -> None:
        """Cancels the engine's request unless it has ended. May be called twice."""
        if not self._is_ended:
            self._is_ended = True
            self._engine.cancel(self.job.request.request_id)

    async def deltas(self) -> AsyncIterator[ChatDelta]:
        """Text as it comes, then one delta with the finish reason.

        Raises EngineError (or a kind of it) when the engine could not complete the request.
        """
        try:
            async for event in self._events:
                delta = self._take(event)
                if delta.text or delta.finish_reason is not None:
                    yield delta
                if delta.finish_reason is not None:
                    return
            raise EngineError("the engine ended a request without a terminal event")
        finally:
            self.close()

    def _take(self, event: TokenEvent) -> ChatDelta:
        self._num_cached = max(self._num_cached, event.num_cached_tokens)
        text = self._text_of(event.tokens)
        if self._matcher.matched is not None:
            # An event may bring the stop string and the engine's own end together.
            self._is_ended = event.finish_reason is not None
            return ChatDelta(text, "stop")
        if event.finish_reason is None:
            return ChatDelta(text)
        self._is_ended = True
        if event.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            raise _error_of(event)
        self._num_completion += event.stop_token is not None
        return ChatDelta(text + self._rest(), event.finish_reason.value)

    def _rest(self) -> str:
        """What was withheld; the end of a half character cannot complete a stop string."""
        return self._matcher.feed(self._detokenizer.flush()) + self._matcher.flush()

    def _text_of(self, tokens: tuple[int, ...]) -> str:
        """Decodes token by token, so that tokens after a stop string are not counted."""
        text = ""
        for token in tokens:
            self._num_completion += 1
            text += self._matcher.feed(self._detokenizer.feed((token,)))
            if self._matcher.matched is not None:
                break
        return text


def _error_of(event: TokenEvent) -> HearthError:
    """The error of the tree that a terminal event stands for."""
    message = event.message or "the request was cancelled"
    for kind in (EngineDeadError, OverloadedError, ContextOverflowError, RequestError):
        if event.error_code == kind.code:
            return kind(message)
    return EngineError(message)
