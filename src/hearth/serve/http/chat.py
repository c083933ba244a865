"""POST /v1/chat/completions, streamed and not."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from hearth.core.errors import HearthError
from hearth.core.request import TokenLogprobs
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.chat_service import ChatService
from hearth.serve.http.answers import (
    ANSWER_ERRORS,
    Answer,
    body_documentation,
    error_responses,
    json_response,
    usage_body,
)
from hearth.serve.http.body import Bodies
from hearth.serve.http.chat_fields import call_of, notices_of, truncation_notices
from hearth.serve.http.deadlines import (
    DEADLINE_RESPONSE,
    error_event,
    prepared,
    whole_response,
    with_timeout,
)
from hearth.serve.http.logprobs import encoded, logprobs_body, prompt_logprobs_body
from hearth.serve.http.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
    NoticeBody,
)
from hearth.serve.http.sse import DONE, EventStream
from hearth.serve.model import ServedModel
from hearth.serve.notices import log_notices
from hearth.serve.prompt_scores import PromptScores
from hearth.serve.reasoning import ReasoningSplitter, Split, split_reasoning
from hearth.serve.running_answer import Delta, Job, RunningAnswer

EXAMPLE = {"messages": [{"role": "user", "content": "What is hearth?"}]}


@dataclass(slots=True)
class _Gathered:
    """What has come of a choice."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    prompt_scores: PromptScores | None = None
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self.pieces)

    def add(self, delta: Delta) -> None:
        """Takes the next delta in."""
        self.pieces.append(delta.text)
        self.logprobs += delta.logprobs
        self.prompt_scores = delta.prompt_scores or self.prompt_scores
        self.finish_reason = delta.finish_reason or self.finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChatAnswer(Answer):
    """Of a chat: with log-probabilities where the request asks."""

    tokenizer: Tokenizer
    wants_logprobs: bool
    separates_reasoning: bool

    def logprobs(self, places: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        """What a choice or a chunk tells of these tokens."""
        return logprobs_body(self.tokenizer, places)

    def whole_choice(self, index: int, gathered: _Gathered, *, is_reasoning: bool) -> ChatChoice:
        """A choice of an answer that is not streamed; `is_reasoning`: as Job has it."""
        message = AssistantMessage(content=gathered.text)
        if self.separates_reasoning:
            reasoning, content = split_reasoning(gathered.text, is_open=is_reasoning)
            message = AssistantMessage(content=content, reasoning_content=reasoning or None)
        logprobs = self.logprobs(gathered.logprobs) if self.wants_logprobs else None
        return ChatChoice(
            index=index,
            message=message,
            logprobs=ChoiceLogprobs.model_validate(logprobs) if logprobs else None,
            finish_reason="length" if gathered.finish_reason == "length" else "stop",
        )


def chat_router(service: ChatService, bodies: Bodies) -> APIRouter:
    """The endpoint, answering with `service`."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses={**error_responses(*ANSWER_ERRORS), 504: DEADLINE_RESPONSE},
        openapi_extra=body_documentation(ChatCompletionRequest, EXAMPLE),
    )
    async def create(request: Request) -> Response:
        body = await bodies.read(request, ChatCompletionRequest)
        call = with_timeout(call_of(body, takes_images=service.takes_images), request, body)
        job = await prepared(request, service.prepare(call), service.deadline_of(call))
        if isinstance(job, Response):
            return job
        answer = _answer_of(body, job, service.model)
        chat = service.submit(job)
        is_stream = body.stream
        del body, call  # an answer may run for long, and images as base64 have megabytes
        if is_stream:
            return EventStream(_stream(answer, chat), chat.close, answer.request_id)
        return await whole_response(request, _complete(answer, chat), chat)

    return router


def _answer_of(body: ChatCompletionRequest, job: Job, model: ServedModel) -> _ChatAnswer:
    notices = [*notices_of(body), *truncation_notices(job.num_truncated)]
    notices += job.images.notices if job.images else ()
    log_notices(job.request.request_id, notices)
    return _ChatAnswer(
        request_id=job.request.request_id,
        kind="chat.completion.chunk",
        created=int(time.time()),
        model=job.model_name,
        notices=notices,
        shows_usage=bool(body.stream_options and body.stream_options.include_usage),
        tokenizer=model.text.tokenizer,
        wants_logprobs=job.request.sampling.num_logprobs >= 0,
        separates_reasoning=model.separates_reasoning,
    )


async def _complete(answer: _ChatAnswer, chat: RunningAnswer) -> Response:
    """The whole answer at once."""
    choices = [_Gathered() for _ in range(chat.job.n)]
    async for delta in chat.deltas():
        choices[delta.index].add(delta)
    completion = ChatCompletion(
        id=answer.request_id,
        created=answer.created,
        model=answer.model,
        choices=[
            answer.whole_choice(index, choice, is_reasoning=chat.job.is_reasoning)
            for index, choice in enumerate(choices)
        ],
        usage=usage_body(chat.usage),
        warnings=[NoticeBody(**notice) for notice in answer.warnings()] or None,
    )
    body = completion.model_dump(exclude={"prompt_logprobs"})
    if not completion.warnings:
        del body["warnings"]
    if (scores := choices[0].prompt_scores) is not None:
        make = partial(prompt_logprobs_body, answer.tokenizer, scores, scores.num_top)
        body["prompt_logprobs"] = await encoded(scores, make)
    return json_response(body, answer.request_id)


async def _stream(answer: _ChatAnswer, chat: RunningAnswer) -> AsyncGenerator[bytes, None]:
    """Role, text, finish reason of every choice, usage where asked, [DONE]; an error ends it.

    The role comes with the first text, so that the first chunk marks the first token's time.
    """
    first: dict[str, object] = {"warnings": answer.warnings()} if answer.notices else {}
    begun: set[int] = set()
    splitters: dict[int, ReasoningSplitter] = {}
    if answer.separates_reasoning:
        is_open = chat.job.is_reasoning
        splitters = {index: ReasoningSplitter(is_open=is_open) for index in range(chat.job.n)}
    try:
        async for delta in chat.deltas():
            index = delta.index
            if index not in begun:
                begun.add(index)
                yield answer.chunk([_choice(index, {"role": "assistant", "content": ""})], **first)
                first = {}
            text = _text_of(delta, splitters.get(index))
            if text or delta.logprobs:
                logprobs = answer.logprobs(delta.logprobs) if delta.logprobs else None
                yield answer.chunk([_choice(index, text or {"content": ""}, logprobs)])
            if delta.finish_reason is not None:
                yield answer.chunk([_choice(index, {}, None, delta.finish_reason)])
        if answer.shows_usage:
            yield answer.chunk([], usage=usage_body(chat.usage).model_dump())
    except HearthError as error:
        yield error_event(error, chat.usage)
    yield DONE


def _text_of(delta: Delta, splitter: ReasoningSplitter | None) -> dict[str, str]:
    """The fields of a chunk's delta that have text."""
    if splitter is None:
        return {"content": delta.text} if delta.text else {}
    split = splitter.feed(delta.text)
    if delta.finish_reason is not None:
        held = splitter.flush()
        split = Split(split.reasoning + held.reasoning, split.content + held.content)
    fields = {"reasoning_content": split.reasoning, "content": split.content}
    return {name: text for name, text in fields.items() if text}


def _choice(
    index: int,
    delta: dict[str, str],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
