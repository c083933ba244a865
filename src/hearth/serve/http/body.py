"""Reads a request's body: bounded, valid UTF-8, and of the endpoint's schema."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from hearth.core.units import format_bytes
from hearth.serve.http.errors import BodyError, BodyTooLargeError, body_error

Schema = TypeVar("Schema", bound=BaseModel)

# How much of a body that is refused is still read, and for how long; see `_discard`.
MAX_DISCARDED_BYTES = 1 << 30
DISCARD_S = 5.0


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
    chunks = request.stream()
    if announced.isdigit() and int(announced) > max_bytes:
        if "expect" not in request.headers:  # otherwise the client waits for our word
            await _discard(chunks)
        raise _too_large(int(announced), max_bytes)
    raw = bytearray()
    async for chunk in chunks:
        raw += chunk
        if len(raw) > max_bytes:
            num_bytes = len(raw)
            raw.clear()
            await _discard(chunks)
            raise _too_large(num_bytes, max_bytes)
    return raw


async def _discard(chunks: AsyncGenerator[bytes, None]) -> None:
    """Reads on for a while and keeps nothing.

    A client sends its whole body before it looks for an answer, and a socket that is closed with
    unread data is reset, which takes the answer with it.
    """
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > MAX_DISCARDED_BYTES:
                    return


def _too_large(num_bytes: int, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has {format_bytes(num_bytes)} or more, permitted are {format_bytes(max_bytes)}",
        hint="shorten the request, or start the server with a larger --max-body-bytes",
    )
