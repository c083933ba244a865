"""Reads a request's body: bounded, valid UTF-8, and of the endpoint's schema."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from hearth.core.units import format_bytes
from hearth.serve.http.errors import BodyError, BodyTooLargeError, body_error

Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """The validated body. Raises BodyTooLargeError or BodyError."""
    raw = await _read_bounded(request, max_bytes)
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


async def _read_bounded(request: Request, max_bytes: int) -> bytearray:
    """The whole body, refused as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(int(announced), max_bytes)
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise _too_large(len(raw), max_bytes)
    return raw


def _too_large(num_bytes: int, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has {format_bytes(num_bytes)} or more, permitted are {format_bytes(max_bytes)}",
        hint="shorten the request, or start the server with a larger --max-body-bytes",
    )
