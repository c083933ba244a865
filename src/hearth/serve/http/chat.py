"""POST /v1/chat/completions, streamed and not."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hearth.core.errors import HearthError
from hearth.core.request import TokenLogprobs
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.chat_service import ChatService
from hearth.serve.http.body import read_body
from hearth.serve.http.chat_fields import call_of, notices_of
from hearth.serve.http.errors import error_detail
from hearth.serve.http.logprobs import logprobs_body
from hearth.serve.http.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
    ErrorBody,
    NoticeBody,
    PromptTokensDetails,
    UsageBody,
)
from hearth.serve.http.sse import (
    CLIENT_CLOSED_REQUEST,
    DONE,
    ClientGoneError,
    EventStream,
    event_bytes,
    receive_of,
    until_gone,
)
from hearth.serve.notices import Notice, log_notices
from hearth.serve.running_chat import ChatDelta, ChatJob, RunningChat, Usage

# The body is read by `read_body`, so that its errors are ours; the documentation is told here.
BODY_DOCUMENTATION = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": f"#/components/schemas/{ChatCompletionRequest.__name__}"},
                "example": {"messages": [{"role": "user", "content": "What is hearth?"}]},
            }
        },
    }
}


@dataclass(slots=True)
class _Gathered:
    """What has come of a choice."""

    pieces: list[str] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: ChatDelta) -> None:
        """Takes the next delta in."""
        self.pieces.append(delta.text)
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason


@dataclass(frozen=True, slots=True)
class _Answer:
    """What every part of one answer repeats."""

    job: ChatJob
    created: int
    notices: Sequence[Notice]
    shows_usage: bool
    tokenizer: Tokenizer

    def chunk(self, choices: list[dict[str, Any]], **fields: object) -> bytes:
        """One event of a streamed answer."""
        usage: dict[str, object] = {"usage": None} if self.shows_usage else {}
        return event_bytes(
            {
                "id": self.job.request.request_id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.job.model_name,
                "choices": choices,
                **usage,
                **fields,
            }
        )

    def logprobs(self, places: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        """What a choice or a chunk tells of these tokens."""
        return logprobs_body(self.tokenizer, places)

    def whole_choice(self, index: int, gathered: _Gathered) -> ChatChoice:
        """A choice of an answer that is not streamed."""
        wants_logprobs = self.job.request.sampling.num_logprobs >= 0
        logprobs = self.logprobs(gathered.logprobs) if wants_logprobs else None
        return ChatChoice(
            index=index,
            message=AssistantMessage(content="".join(gathered.pieces)),
            logprobs=ChoiceLogprobs.model_validate(logprobs) if logprobs else None,
            finish_reason="length" if gathered.finish_reason == "length" else "stop",
        )

    def warnings(self) -> list[dict[str, str]]:
        """The notices as the response shows them."""
        return [notice.body() for notice in self.notices]


def chat_router(service: ChatService, max_body_bytes: int) -> APIRouter:
    """The endpoint, answering with `service`."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses={400: {"model": ErrorBody}, 404: {"model": ErrorBody}, 503: {"model": ErrorBody}},
        openapi_extra=BODY_DOCUMENTATION,
    )
    async def create(request: Request) -> Response:
        body = await read_body(request, ChatCompletionRequest, max_body_bytes)
        notices = notices_of(body)
        job = await service.prepare(call_of(body))
        log_notices(job.request.request_id, notices)
        shows_usage = bool(body.stream_options and body.stream_options.include_usage)
        tokenizer = service.model.text.tokenizer
        answer = _Answer(job, int(time.time()), notices, shows_usage, tokenizer)
        chat = service.submit(job)
        if body.stream:
            return EventStream(_stream(answer, chat), chat.close)
        try:
            return await until_gone(receive_of(request), _complete(answer, chat))
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            chat.close()

    return router


async def _complete(answer: _Answer, chat: RunningChat) -> Response:
    """The whole answer at once."""
    choices = [_Gathered() for _ in range(answer.job.n)]
    async for delta in chat.deltas():
        choices[delta.index].add(delta)
    completion = ChatCompletion(
        id=answer.job.request.request_id,
        created=answer.created,
        model=answer.job.model_name,
        choices=[answer.whole_choice(index, choice) for index, choice in enumerate(choices)],
        usage=_usage_body(chat.usage),
        warnings=[NoticeBody(**notice) for notice in answer.warnings()] or None,
    )
    exclude = None if completion.warnings else {"warnings"}
    return JSONResponse(completion.model_dump(exclude=exclude))


async def _stream(answer: _Answer, chat: RunningChat) -> AsyncGenerator[bytes, None]:
    """Role, text, finish reason of every choice, usage where asked, [DONE]; an error ends it.

    The role comes with the first text, so that the first chunk marks the first token's time.
    """
    first: dict[str, object] = {"warnings": answer.warnings()} if answer.notices else {}
    begun: set[int] = set()
    try:
        async for delta in chat.deltas():
            index = delta.index
            if index not in begun:
                begun.add(index)
                yield answer.chunk([_choice(index, {"role": "assistant", "content": ""})], **first)
                first = {}
            if delta.text or delta.logprobs:
                logprobs = answer.logprobs(delta.logprobs) if delta.logprobs else None
                yield answer.chunk([_choice(index, {"content": delta.text}, logprobs)])
            if delta.finish_reason is not None:
                yield answer.chunk([_choice(index, {}, None, delta.finish_reason)])
        if answer.shows_usage:
            yield answer.chunk([], usage=_usage_body(chat.usage).model_dump())
    except HearthError as error:
        yield event_bytes(ErrorBody(error=error_detail(error)).model_dump())
    yield DONE


def _choice(
    index: int,
    delta: dict[str, str],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_completion_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.num_cached_tokens),
    )
