"""Errors in OpenAI's form, for everything that can go wrong with a request.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Installed once on the application: the error tree, refused bodies (400 with the field's path and
what is permitted), unknown paths and methods, and, outermost, whatever was not expected (500, with
its trace in the log).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hearth.core.errors import HearthError, RequestError
from hearth.serve.http.schemas import TAG_PREFIX, ErrorBody, ErrorDetail

Schema = TypeVar("Schema", bound=BaseModel)

logger = logging.getLogger("hearth.serve")

RETRY_AFTER_S = 1  # where nothing better is known
MAX_SHOWN_ERRORS = 5
MAX_SHOWN_CHARS = 80
# A message repeats what the client sent, which may be megabytes: its middle is left out.
MAX_MESSAGE_CHARS = 2000
_END_CHARS = 400  # what to do stands at a message's end
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_CLOSING = (408, 413, 431)
_INTERNAL = "an internal error occurred; the server's log has its cause"


class BodyError(RequestError):
    """The body is not what the endpoint takes; refused before it means anything."""

    code = "invalid_body"


class BodyTooLargeError(RequestError):
    """The body is larger than the server accepts."""

    code = "body_too_large"
    http_status = 413


class SlowRequestError(RequestError):
    """The client let too long pass before it sent the rest of its request."""

    code = "slow_request"
    http_status = 408


def error_detail(error: HearthError) -> ErrorDetail:
    """The error as clients see it."""
    return ErrorDetail(
        message=_cut(str(error)),
        type=_type_of(error.http_status),
        param=None if error.param is None else _cut(error.param),
        code=error.code,
    )


def error_response(error: HearthError) -> JSONResponse:
    """The whole answer, with Retry-After where trying again makes sense."""
    headers: dict[str, str] = {}
    if error.http_status in (429, 503):
        wait_s = getattr(error, "retry_after_s", None) or RETRY_AFTER_S
        headers["Retry-After"] = str(math.ceil(wait_s))
    if error.http_status in _CLOSING:
        headers["Connection"] = "close"  # the rest of the request is not read
    body = ErrorBody(error=error_detail(error))
    return JSONResponse(body.model_dump(), status_code=error.http_status, headers=headers)


def body_error(error: ValidationError, schema: type[BaseModel]) -> BodyError:
    """One error that names every refused field (the first few) and what is permitted."""
    details = error.errors(include_url=False, include_context=False)
    shown = [_sentence(detail, schema) for detail in details[:MAX_SHOWN_ERRORS]]
    if len(details) > MAX_SHOWN_ERRORS:
        shown.append(f"and {len(details) - MAX_SHOWN_ERRORS} more")
    return BodyError("; ".join(shown), param=_path(details[0]["loc"]) or None)


def validated(raw: bytes | bytearray, schema: type[Schema]) -> Schema:
    """The body as its schema. Raises BodyError."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BodyError(
            f"the body is not valid UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}",
            hint="send JSON encoded as UTF-8",
        ) from error
    try:
        return schema.model_validate_json(bytes(raw))
    except ValidationError as error:
        raise body_error(error, schema) from error


def install_error_handlers(app: FastAPI) -> None:
    """Makes every answer that is an error take OpenAI's form."""

    async def on_hearth_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HearthError)
        if error.http_status >= 500:
            logger.error("%s: %s", error.code, error)
        return error_response(error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _of_status(request, error)

    app.add_exception_handler(HearthError, on_hearth_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(_CatchAll)


class _CatchAll:
    """Outermost: an unexpected exception is logged with its trace and answered with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:  # in the middle of its own request: nobody waits for an answer
            logger.info("client_gone path=%s", scope.get("path"))
        except Exception:  # the top of a request: nothing above it could answer
            logger.exception("unexpected_error path=%s", scope.get("path"))
            if has_started:
                raise  # the connection must not look as if the answer were complete
            await error_response(HearthError(_INTERNAL))(scope, receive, send)


def _of_status(request: Request, error: HTTPException) -> JSONResponse:
    """An error of the framework: unknown path, wrong method."""
    status = error.status_code
    message = str(error.detail)
    if status == 404:
        message = f"there is no {request.method} {request.url.path} here; /docs lists what there is"
    elif status == 405:
        allowed = Headers(error.headers).get("allow", "another method")
        message = f"{request.url.path} does not take {request.method} (permitted: {allowed})"
    detail = ErrorDetail(
        message=_cut(message), type=_type_of(status), code=_STATUS_CODES.get(status, "http_error")
    )
    body = ErrorBody(error=detail).model_dump()
    return JSONResponse(body, status_code=status, headers=dict(error.headers or {}))


def _cut(text: str) -> str:
    """The text, without its middle where it is too long."""
    if len(text) <= MAX_MESSAGE_CHARS:
        return text
    return f"{text[: MAX_MESSAGE_CHARS - _END_CHARS - 3]}...{text[-_END_CHARS:]}"


def _type_of(status: int) -> str:
    """OpenAI's family of an error."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _path(location: Sequence[int | str]) -> str:
    """`messages.0.content`; the tags of unions are left out."""
    return ".".join(str(part) for part in location if not str(part).startswith(TAG_PREFIX))


def _sentence(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    """`temperature: Input should be … (got 3.5; permitted: a number from 0 to 2)`."""
    if detail["type"] == "json_invalid":
        return f"the body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}"
    path = _path(detail["loc"])
    if not path:
        return f"the body is not a JSON object: {detail['msg']}"
    permitted = _permitted(detail["loc"], schema)
    if detail["type"] == "missing":
        return f"{path} is missing" + (f" (permitted: {permitted})" if permitted else "")
    shown = _shown(detail["input"])
    return f"{path}: {detail['msg']} (got {shown}" + (
        f"; permitted: {permitted})" if permitted else ")"
    )


def _permitted(location: Sequence[int | str], schema: type[BaseModel]) -> str:
    """The description of the innermost field of ours on the path."""
    found = ""
    model: Any = schema
    for part in location:
        fields: Mapping[str, Any] = getattr(model, "model_fields", {})
        if part in fields:
            found = fields[str(part)].description or found
            model = fields[str(part)].annotation
        model = _inner_model(model) or model
    return found


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field's annotation holds: in a list, an optional or a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (inner := _inner_model(argument)) is not None:
            return inner
    return None


def _shown(value: object) -> str:
    """The refused value, shortened: bodies can be megabytes."""
    if isinstance(value, str | list | dict) and len(value) > MAX_SHOWN_CHARS:
        return f"a {type(value).__name__} of {len(value)} entries or characters"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 3]}..."
