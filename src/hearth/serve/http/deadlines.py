"""A request's time: where a client names it, and how an answer ends when it is over.

Seconds, in the body (`timeout`, as in LiteLLM) or in the header `X-Request-Timeout`, for gateways
that cannot change bodies; the shorter one counts, and the server's own `--request-timeout` is a
bound on both. They count from the moment when the body has been read.

The status is 504 and the body tells the usage so far, beside the error. OpenAI's client would send
such a request again twice; the header that it looks at for that tells it not to: the work that was
too much would only be done again. A stream that has begun ends with the same body as an event.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from hearth.core.errors import DeadlineExceededError, HearthError, RequestError
from hearth.serve.http.answers import usage_body
from hearth.serve.http.errors import error_detail
from hearth.serve.http.schemas import (
    MAX_TIMEOUT_S,
    TIMEOUT_PERMITTED,
    AnswerFields,
    ErrorBody,
    UsageBody,
)
from hearth.serve.http.sse import (
    CLIENT_CLOSED_REQUEST,
    ClientGoneError,
    event_bytes,
    receive_of,
    until_gone,
)
from hearth.serve.pipeline import Call
from hearth.serve.running_answer import Usage

TIMEOUT_HEADER = "X-Request-Timeout"
_NO_RETRY = {"X-Should-Retry": "false"}

AnyCall = TypeVar("AnyCall", bound=Call)
Prepared = TypeVar("Prepared")


class Work(Protocol):
    """What an answer is made of: it counts what was done, and ends when it is closed."""

    @property
    def usage(self) -> Usage: ...

    def close(self) -> None: ...


class DeadlineBody(ErrorBody):
    """Body of an answer that ran out of time; `usage` counts what was done."""

    usage: UsageBody


DEADLINE_RESPONSE: dict[str, Any] = {"model": DeadlineBody}


def with_timeout(call: AnyCall, request: Request, body: AnswerFields) -> AnyCall:
    """The call with the timeout that its client asks for. Raises RequestError."""
    named = (body.timeout, header_seconds(request))
    return replace(call, timeout_s=min((s for s in named if s is not None), default=None))


async def prepared(
    request: Request, work: Coroutine[Any, Any, Prepared], deadline: float
) -> Prepared | Response:
    """What `work` makes of a request before it runs, or the response in its place.

    `deadline`: as `Pipeline.deadline_of` has it. The work is cancelled when the client goes away,
    and when the time is over. Raises what `work` raises.
    """
    try:
        return await until_gone(receive_of(request), _in_time(work, deadline))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except DeadlineExceededError as error:
        return _late_response(error, Usage(0, 0, 0))


async def whole_response(
    request: Request, answer: Coroutine[Any, Any, Response], work: Work
) -> Response:
    """The response that `answer` makes, or the one in its place; closes the work in any case.

    Raises what `answer` raises but for the end of its time.
    """
    try:
        return await until_gone(receive_of(request), answer)
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except DeadlineExceededError as error:
        return _late_response(error, work.usage)
    finally:
        work.close()


def error_event(error: HearthError, usage: Usage) -> bytes:
    """The event that ends a stream in the place of the rest."""
    if isinstance(error, DeadlineExceededError):
        return event_bytes(_body(error, usage))
    return event_bytes(ErrorBody(error=error_detail(error)).model_dump())


async def _in_time(work: Coroutine[Any, Any, Prepared], deadline: float) -> Prepared:
    """What `work` makes. Raises DeadlineExceededError, and what `work` raises."""
    left_s = max(0.0, deadline - time.monotonic()) if deadline else None
    limit = asyncio.timeout(left_s)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceededError(
            "the request's time was over before it was complete: its prompt was being prepared"
        ) from error


def _late_response(error: DeadlineExceededError, usage: Usage) -> JSONResponse:
    return JSONResponse(_body(error, usage), status_code=error.http_status, headers=_NO_RETRY)


def _body(error: DeadlineExceededError, usage: Usage) -> dict[str, Any]:
    return DeadlineBody(error=error_detail(error), usage=usage_body(usage)).model_dump()


def header_seconds(request: Request) -> float | None:
    """The timeout that the header names. Raises RequestError where that is no permitted number."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise RequestError(
            f"the header {TIMEOUT_HEADER} is {text[:40]!r} (permitted: {TIMEOUT_PERMITTED})",
            param=TIMEOUT_HEADER,
        )
    return seconds
