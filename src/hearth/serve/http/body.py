"""Reads requests' bodies: each bounded, in time too, all together bounded, valid, of the schema.

A body of a few long strings is validated where it is; one of many small values would hold the event
loop up for as long as that takes (0.1 to 0.5 µs a value), so another process does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from hearth.core.errors import HearthError, OverloadedError
from hearth.core.units import format_bytes
from hearth.serve.http.body_worker import BodyWorker
from hearth.serve.http.errors import BodyError, BodyTooLargeError, SlowRequestError, validated

Schema = TypeVar("Schema", bound=BaseModel)

# How much of a body that is refused is still read, and for how long; see `_discard`.
MAX_DISCARDED_BYTES = 1 << 30
DISCARD_S = 5.0
# How long a client may take to send the next piece of a body.
IDLE_S = 60.0
# Full bodies that may be in memory at a time, read or being read.
BODIES_AT_ONCE = 8
# From so many values on (counted by what separates them) a body takes 10 ms to validate.
MANY_VALUES = 20_000
_SEPARATORS = (b",", b"[", b"{")


class Bodies:
    """All bodies of one server that are being read or validated."""

    def __init__(self, max_bytes: int, max_total_bytes: int | None = None) -> None:
        """`max_bytes` a body; without `max_total_bytes` BODIES_AT_ONCE full ones at a time."""
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes or BODIES_AT_ONCE * max_bytes
        self._num_bytes = 0  # of all bodies now
        self._worker = BodyWorker()

    async def read(self, request: Request, schema: type[Schema]) -> Schema:
        """The validated body.

        Raises BodyTooLargeError, OverloadedError, SlowRequestError or BodyError.
        """
        raw = bytearray()
        try:
            await self._fill(raw, request)
            separators = sum(map(raw.count, _SEPARATORS))
            if separators < MANY_VALUES:
                return validated(raw, schema)
            return await self._worker.validate(raw, schema)
        finally:
            self._num_bytes -= len(raw)

    def close(self) -> None:
        """Ends the process that validates large bodies."""
        self._worker.close()

    async def _fill(self, raw: bytearray, request: Request) -> None:
        """Reads the whole body, which is refused as soon as it is known to be too large."""
        coding = request.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            raise BodyError(
                f"the body has Content-Encoding {coding[:40]!r} (permitted: none)",
                hint="send the JSON uncompressed",
            )
        announced = request.headers.get("content-length", "")
        chunks = request.stream()
        if announced.isdigit() and int(announced) > self._max_bytes:
            if "expect" not in request.headers:  # otherwise the client waits for our word
                await _discard(chunks)
            raise _too_large(int(announced), self._max_bytes)
        async for chunk in _in_time(chunks):
            raw += chunk
            self._num_bytes += len(chunk)
            num_bytes = len(raw)
            refused: HearthError | None = None
            if num_bytes > self._max_bytes:
                refused = _too_large(num_bytes, self._max_bytes)
            elif self._num_bytes > self._max_total_bytes:
                refused = _too_many(self._num_bytes, self._max_total_bytes)
            if refused is not None:
                raw.clear()
                self._num_bytes -= num_bytes
                await _discard(chunks)
                raise refused


async def _in_time(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The chunks as they come. Raises SlowRequestError where the next one takes IDLE_S."""
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise SlowRequestError(
                f"nothing came of the request's body for {IDLE_S:g} s",
                hint="send the body in one go",
            ) from error
        yield chunk


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


def _too_many(num_bytes: int, max_bytes: int) -> OverloadedError:
    return OverloadedError(
        f"the bodies of all requests that are being read have {format_bytes(num_bytes)}, permitted "
        f"are {format_bytes(max_bytes)}",
        hint="retry later",
    )


def _too_large(num_bytes: int, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has {format_bytes(num_bytes)} or more, permitted are {format_bytes(max_bytes)}",
        hint="shorten the request, or start the server with a larger --max-body-bytes",
    )
