"""Server-sent events, and what happens when the client goes away in the middle of an answer.

Both kinds of answer watch the connection: when it closes, the work is cancelled at once, which
closes the running chat and frees its sequence within one step.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody receives it
_encoder = msgspec.json.Encoder()


class ClientGoneError(Exception):
    """The client closed the connection before the answer was complete."""


def event_bytes(data: object) -> bytes:
    """One event; JSON as UTF-8, on one line."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


class EventStream(Response):
    """Sends what a generator yields; ends the generator when the client goes away.

    `close` is called in the end, also when the generator was never started.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], None], request_id: str
    ) -> None:
        super().__init__(
            headers={
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-Id": request_id,
            },
            media_type="text/event-stream; charset=utf-8",
        )
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGoneError):
                await until_gone(receive, self._stream(send))
        finally:
            self._close()

    async def _stream(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client closes the connection.

    The request's body must have been read. Raises ClientGoneError, and what `work` raises.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_gone(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGoneError
        return worker.result()
    finally:
        for task in (worker, watcher):
            task.cancel()
        # `work` has closed its chat when this returns: it must not run on behind our back.
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def receive_of(request: Request) -> Receive:
    """The request's channel, from which `until_gone` hears that the client went away."""
    return request.receive
