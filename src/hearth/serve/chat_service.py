"""Chat: from messages to a submitted request. What comes back is `running_chat`'s.

Checks everything that needs the model: context, vocabulary, names. Knows nothing of HTTP.

    messages ─ render ─ encode ─ check against the context ─▶ ChatJob ─ submit ─▶ RunningChat
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hearth.core.errors import ContextOverflowError, RequestError
from hearth.core.request import Request, SamplingParams
from hearth.core.units import format_count
from hearth.serve.engine_port import EnginePort
from hearth.serve.model import ServedModel
from hearth.serve.running_chat import ChatJob, RunningChat
from hearth.serve.sampling import SamplingChoices, bad_word_tokens, resolve_sampling


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What a client asks for, checked for types and ranges, free of HTTP."""

    messages: tuple[dict[str, Any], ...]
    model: str | None = None
    sampling: SamplingChoices = field(default_factory=SamplingChoices)
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    bad_words: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)


class ChatService:
    """Answers chats with one model on one engine."""

    def __init__(self, engine: EnginePort, model: ServedModel) -> None:
        self.engine = engine
        self.model = model

    async def prepare(self, call: ChatCall) -> ChatJob:
        """Renders, encodes and checks. Raises RequestError and its kinds."""
        model_name = self.model.resolve_name(call.model)
        self._check_token_ids("stop_token_ids", call.stop_token_ids)
        self._check_token_ids("logit_bias", call.sampling.logit_bias)
        prompt = await self._encode(call)
        stops = call.stop_token_ids | (frozenset() if call.ignore_eos else self._eos)
        request = Request(
            request_id=f"chatcmpl-{uuid.uuid4().hex}",
            prompt=tuple(prompt),
            max_tokens=self._max_tokens(len(prompt), call.max_tokens),
            sampling=self._sampling(call),
            stop_token_ids=stops,
        )
        _check_min_tokens(request)
        return ChatJob(request, model_name, call.stop, call.include_stop, call.n)

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

    def _sampling(self, call: ChatCall) -> SamplingParams:
        params = resolve_sampling(call.sampling, self.model.defaults)
        if not call.bad_words:
            return params
        words = bad_word_tokens(self.model.text.tokenizer, call.bad_words)
        return replace(params, bad_words=words)

    def _check_token_ids(self, param: str, token_ids: Iterable[int]) -> None:
        outside = sorted(i for i in token_ids if i >= self.model.vocab_size)
        if outside:
            raise RequestError(
                f"{param}: {outside[0]} is outside the vocabulary "
                f"(permitted: 0 to {self.model.vocab_size - 1})",
                param=param,
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


def _check_min_tokens(request: Request) -> None:
    min_tokens = request.sampling.min_tokens
    if min_tokens > request.max_tokens:
        raise RequestError(
            f"min_tokens is {format_count(min_tokens)}, permitted are 0 to "
            f"{format_count(request.max_tokens)}, the most tokens that this answer can have",
            hint="lower min_tokens, raise max_tokens or shorten the messages",
            param="min_tokens",
        )
