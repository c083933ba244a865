"""POST /v1/completions, streamed and not."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request, Response

from hearth.core.errors import HearthError, RequestError
from hearth.core.request import TokenLogprobs
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.completion_service import (
    AnswerGroup,
    CompletionCall,
    CompletionJob,
    CompletionService,
    Prompt,
)
from hearth.serve.http.answers import (
    ANSWER_ERRORS,
    Answer,
    body_documentation,
    error_responses,
    json_response,
    usage_body,
)
from hearth.serve.http.body import Bodies
from hearth.serve.http.chat_fields import (
    field_notices,
    given_or_none,
    refuse_other_shapes,
    sampling_of,
    stops_of,
    truncation_notices,
)
from hearth.serve.http.completion_schemas import Completion, CompletionRequest
from hearth.serve.http.deadlines import (
    DEADLINE_RESPONSE,
    error_event,
    prepared,
    whole_response,
    with_timeout,
)
from hearth.serve.http.logprobs import LegacyLogprobs, encoded, prompt_logprobs_body
from hearth.serve.http.sse import DONE, EventStream
from hearth.serve.notices import log_notices
from hearth.serve.prompt_scores import PromptScores
from hearth.serve.running_answer import Delta

_EXAMPLE = {"prompt": "hearth is", "max_tokens": 16}


def completions_router(service: CompletionService, bodies: Bodies) -> APIRouter:
    """The endpoint, answering with `service`."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/v1/completions",
        summary="Go on from a text",
        response_model=Completion,
        responses={**error_responses(*ANSWER_ERRORS), 504: DEADLINE_RESPONSE},
        openapi_extra=body_documentation(CompletionRequest, _EXAMPLE),
    )
    async def create(request: Request) -> Response:
        body = await bodies.read(request, CompletionRequest)
        call = with_timeout(call_of(body), request, body)
        job = await prepared(request, service.prepare(call), service.deadline_of(call))
        if isinstance(job, Response):
            return job
        answer = _answer_of(body, job, service.model.text.tokenizer)
        group = service.submit_all(job)
        if body.stream:
            return EventStream(
                _stream(answer, group, num_choices=job.num_choices), group.close, answer.request_id
            )
        whole = _complete(answer, group, num_choices=job.num_choices)
        return await whole_response(request, whole, group)

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
    num_logprobs = given_or_none(body.logprobs)
    echoed = num_logprobs if body.echo else -1
    return CompletionCall(
        prompts=_prompts_of(body),
        echo=bool(body.echo),
        add_special_tokens=True if specials is None else specials,
        model=body.model,
        sampling=sampling_of(body, num_logprobs, max(echoed, given_or_none(body.prompt_logprobs))),
        max_tokens=body.max_tokens,
        n=body.n or 1,
        stop=stops_of(body),
        include_stop=bool(body.include_stop_str_in_output),
        bad_words=tuple(body.bad_words or ()),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        priority=body.priority or 0,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )


def _prompts_of(body: CompletionRequest) -> tuple[Prompt, ...]:
    """One prompt a choice; an empty list of tokens is refused as an empty prompt."""
    found = body.prompt
    if isinstance(found, str):
        return (found,)
    if not found or isinstance(found[0], int):  # the schema has no lists of several kinds
        return (tuple(cast("list[int]", found)),)
    return tuple(
        p if isinstance(p, str) else tuple(p) for p in cast("list[str | list[int]]", found)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextAnswer(Answer):
    """Of a completion; the numbers of best tokens are −1 where nothing is asked for."""

    tokenizer: Tokenizer
    num_logprobs: int
    num_prompt_logprobs: int
    echoes: bool

    def choices(self, count: int) -> list[_Choice]:
        """What has come of each choice: nothing yet."""
        return [_Choice(self, index) for index in range(count)]


@dataclass(slots=True)
class _Choice:
    """One choice on its way, streamed or not."""

    answer: _TextAnswer
    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    scores: PromptScores | None = None
    echo: str = ""
    finish_reason: str = "stop"
    legacy: LegacyLogprobs | None = None

    def __post_init__(self) -> None:
        if self.answer.num_logprobs >= 0:
            self.legacy = LegacyLogprobs(self.answer.tokenizer, self.answer.num_logprobs)

    def add(self, delta: Delta) -> None:
        """Takes the next delta in."""
        self.texts.append(delta.text)
        self.tokens += delta.logprobs
        if delta.prompt_scores is not None:
            self.scores, self.echo = delta.prompt_scores, delta.text
        self.finish_reason = delta.finish_reason or self.finish_reason

    async def logprobs(self, delta: Delta) -> dict[str, msgspec.Raw] | None:
        """What a chunk of a stream tells; None where it is nothing."""
        legacy, scores = self.legacy, delta.prompt_scores
        if legacy is None:
            return None
        if scores is not None and self.answer.echoes:
            return await encoded(scores, lambda: legacy.of_prompt(scores, delta.text))
        return legacy.of_tokens(delta.logprobs) if delta.logprobs else None

    async def body(self) -> dict[str, Any]:
        """The whole choice; fields as in CompletionChoice."""
        body: dict[str, Any] = {"index": self.index, "text": "".join(self.texts), "logprobs": None}
        body["finish_reason"] = "length" if self.finish_reason == "length" else "stop"
        tokens, scores, num_top = self.tokens, self.scores, self.answer.num_prompt_logprobs
        legacy, echo = self.legacy, self.echo
        if legacy is not None:
            if scores is not None and self.answer.echoes:
                body["logprobs"] = await encoded(
                    scores, lambda: legacy.of_both(scores, echo, tokens)
                )
            else:
                body["logprobs"] = legacy.of_tokens(tokens)
        if scores is not None and num_top >= 0:
            make = partial(prompt_logprobs_body, self.answer.tokenizer, scores, num_top)
            body["prompt_logprobs"] = await encoded(scores, make)
        return body


def _answer_of(body: CompletionRequest, job: CompletionJob, tokenizer: Tokenizer) -> _TextAnswer:
    notices = [*field_notices(body), *truncation_notices(job.num_truncated)]
    log_notices(job.request_id, notices)
    return _TextAnswer(
        request_id=job.request_id,
        kind="text_completion",
        created=int(time.time()),
        model=job.model_name,
        notices=notices,
        shows_usage=bool(body.stream_options and body.stream_options.include_usage),
        tokenizer=tokenizer,
        num_logprobs=given_or_none(body.logprobs),
        num_prompt_logprobs=given_or_none(body.prompt_logprobs),
        echoes=bool(body.echo),
    )


async def _complete(answer: _TextAnswer, group: AnswerGroup, *, num_choices: int) -> Response:
    """All answers at once."""
    choices = answer.choices(num_choices)
    async for delta in group.deltas():
        choices[delta.index].add(delta)
    body: dict[str, Any] = {
        "id": answer.request_id,
        "object": answer.kind,
        "created": answer.created,
        "model": answer.model,
        "choices": [await choice.body() for choice in choices],
        "usage": usage_body(group.usage).model_dump(),
    }
    if answer.notices:
        body["warnings"] = answer.warnings()
    return json_response(body, answer.request_id)


async def _stream(
    answer: _TextAnswer, group: AnswerGroup, *, num_choices: int
) -> AsyncGenerator[bytes, None]:
    """Text, finish reasons, usage where asked, [DONE]; an error takes the rest's place."""
    first: dict[str, object] = {"warnings": answer.warnings()} if answer.notices else {}
    choices = answer.choices(num_choices)
    try:
        async for delta in group.deltas():
            logprobs = await choices[delta.index].logprobs(delta)
            yield answer.chunk([_chunk_of(delta, logprobs)], **first)
            first = {}
        if answer.shows_usage:
            yield answer.chunk([], usage=usage_body(group.usage).model_dump())
    except HearthError as error:
        yield error_event(error, group.usage)
    yield DONE


def _chunk_of(delta: Delta, logprobs: dict[str, msgspec.Raw] | None) -> dict[str, Any]:
    return {
        "index": delta.index,
        "text": delta.text,
        "logprobs": logprobs,
        "finish_reason": delta.finish_reason,
    }
