"""POST /v1/completions, streamed and not."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hearth.core.errors import DeadlineExceededError, HearthError, RequestError
from hearth.serve.completion_service import (
    AnswerGroup,
    CompletionCall,
    CompletionJob,
    CompletionService,
    Prompt,
)
from hearth.serve.http.answers import Answer, body_documentation, usage_body
from hearth.serve.http.body import read_body
from hearth.serve.http.chat_fields import field_notices, refuse_other_shapes, sampling_of, stops_of
from hearth.serve.http.completion_schemas import Completion, CompletionChoice, CompletionRequest
from hearth.serve.http.deadlines import (
    DEADLINE_RESPONSE,
    deadline_response,
    error_event,
    with_timeout,
)
from hearth.serve.http.schemas import ErrorBody, NoticeBody
from hearth.serve.http.sse import (
    CLIENT_CLOSED_REQUEST,
    DONE,
    ClientGoneError,
    EventStream,
    receive_of,
    until_gone,
)
from hearth.serve.notices import log_notices

_APPLIED = frozenset({"echo", "add_special_tokens"})
_EXAMPLE = {"prompt": "hearth is", "max_tokens": 16}


def completions_router(service: CompletionService, max_body_bytes: int) -> APIRouter:
    """The endpoint, answering with `service`."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/v1/completions",
        summary="Go on from a text",
        response_model=Completion,
        responses={
            400: {"model": ErrorBody},
            404: {"model": ErrorBody},
            503: {"model": ErrorBody},
            504: DEADLINE_RESPONSE,
        },
        openapi_extra=body_documentation(CompletionRequest, _EXAMPLE),
    )
    async def create(request: Request) -> Response:
        body = await read_body(request, CompletionRequest, max_body_bytes)
        job = await service.prepare(with_timeout(call_of(body), request, body))
        answer = _answer_of(body, job)
        group = service.submit_all(job)
        if body.stream:
            return EventStream(_stream(answer, group), group.close)
        try:
            return await until_gone(
                receive_of(request), _complete(answer, group, num_choices=job.num_choices)
            )
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except DeadlineExceededError as error:
            return deadline_response(error, group.usage)
        finally:
            group.close()

    return router


def call_of(body: CompletionRequest) -> CompletionCall:
    """The call that the body asks for. Raises RequestError for what cannot be answered."""
    refuse_other_shapes(body)
    if body.suffix:
        raise RequestError(
            "suffix: infilling between prompt and suffix is not supported (permitted: no suffix)",
            hint="write the model's own infilling tokens into the prompt",
            param="suffix",
        )
    specials = body.add_special_tokens
    return CompletionCall(
        prompts=_prompts_of(body),
        echo=bool(body.echo),
        add_special_tokens=True if specials is None else specials,
        model=body.model,
        sampling=sampling_of(body),
        max_tokens=body.max_tokens,
        n=body.n or 1,
        stop=stops_of(body),
        include_stop=bool(body.include_stop_str_in_output),
        bad_words=tuple(body.bad_words or ()),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        priority=body.priority or 0,
    )


def _prompts_of(body: CompletionRequest) -> tuple[Prompt, ...]:
    """One prompt a choice; an empty list of tokens is refused as an empty prompt."""
    found = body.prompt
    if isinstance(found, str):
        return (found,)
    prompts: list[Prompt] = []
    tokens: list[int] = []
    for item in found:
        if isinstance(item, int):
            tokens.append(item)
        else:
            prompts.append(item if isinstance(item, str) else tuple(item))
    return tuple(prompts) or (tuple(tokens),)


def _answer_of(body: CompletionRequest, job: CompletionJob) -> Answer:
    notices = field_notices(body, _APPLIED)
    log_notices(job.request_id, notices)
    return Answer(
        request_id=job.request_id,
        kind="text_completion",
        created=int(time.time()),
        model=job.model_name,
        notices=notices,
        shows_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


async def _complete(answer: Answer, group: AnswerGroup, *, num_choices: int) -> Response:
    """All answers at once."""
    texts = [""] * num_choices
    reasons = ["stop"] * num_choices
    async for delta in group.deltas():
        texts[delta.index] += delta.text
        reasons[delta.index] = delta.finish_reason or "stop"
    completion = Completion(
        id=answer.request_id,
        created=answer.created,
        model=answer.model,
        choices=[
            CompletionChoice(
                index=index, text=text, finish_reason="length" if reason == "length" else "stop"
            )
            for index, (text, reason) in enumerate(zip(texts, reasons))
        ],
        usage=usage_body(group.usage),
        warnings=[NoticeBody(**notice) for notice in answer.warnings()] or None,
    )
    exclude = None if completion.warnings else {"warnings"}
    return JSONResponse(completion.model_dump(exclude=exclude))


async def _stream(answer: Answer, group: AnswerGroup) -> AsyncGenerator[bytes, None]:
    """Text, finish reasons, usage where asked, [DONE]; an error takes the rest's place."""
    first: dict[str, object] = {"warnings": answer.warnings()} if answer.notices else {}
    try:
        async for delta in group.deltas():
            yield answer.chunk([_choice(delta.index, delta.text, delta.finish_reason)], **first)
            first = {}
        if answer.shows_usage:
            yield answer.chunk([], usage=usage_body(group.usage).model_dump())
    except HearthError as error:
        yield error_event(error, group.usage)
    yield DONE


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
