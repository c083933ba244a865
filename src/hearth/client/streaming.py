"""StreamPool: streamed answers over plain sockets, each piece with the time when it was read.

For measuring, a general HTTP client is too slow: at 170 µs an event (httpx on one core) four
streams of a quick model keep it so busy that it finds several events at a time, and then their
distances say more about the client than about the server. Here an event costs some 40 µs, and its
time is taken in the transport's callback, before whoever waits for it runs.

    free ─ open → busy ─ response complete, kept alive → idle ─ open → busy; ─ otherwise → closed
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from hearth.client.sse import EventSplitter
from hearth.client.wire import Target, encoded, refusal, unreachable
from hearth.core.errors import RemoteError

_OK = 200


@dataclass(frozen=True, slots=True)
class Arrival:
    """Payloads of the events that one read completed, and when it was made."""

    seconds: float  # of time.perf_counter
    payloads: list[bytes]


class StreamPool:
    """Connections to one server: as many as there are streams, reused when a stream has ended."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._address = urlsplit(target.root)
        self._idle: list[_Connection] = []

    def close(self) -> None:
        """Closes idle connections; those of streams end with their streams."""
        while self._idle:
            self._idle.pop().close()

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Arrival, None]:
        """The answer's events as they arrive.

        Raises RemoteError: refused, unreachable, cut off, or silent for the target's timeout.
        """
        request = self._request(path, body)
        connection = await self._send(request)
        try:
            if connection.status != _OK:
                pieces = [piece async for _, piece in connection.pieces()]
                raise refusal(connection.status, b"".join(pieces))
            splitter = EventSplitter()
            async for seconds, piece in connection.pieces():
                if payloads := splitter.feed(piece):
                    yield Arrival(seconds, payloads)
        finally:
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()

    async def _send(self, request: bytes) -> _Connection:
        """A connection on which the answer's head has been read.

        An idle connection that the server closed meanwhile is not the server's failure.
        """
        while True:
            is_fresh = not self._idle
            connection = await self._connect() if is_fresh else self._idle.pop()
            try:
                if await connection.ask(request):
                    return connection
                if is_fresh:
                    message = "the server closed the connection without an answer"
                    raise connection.error or RemoteError(message)
            except BaseException:
                connection.close()
                raise
            connection.close()

    async def _connect(self) -> _Connection:
        address = self._address
        try:
            async with asyncio.timeout(self.target.timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self.target.timeout_s),
                    address.hostname or "",
                    address.port or (443 if address.scheme == "https" else 80),
                    ssl=ssl.create_default_context() if address.scheme == "https" else None,
                )
        except OSError as error:  # TimeoutError is one
            raise unreachable(self.target, error) from error
        return connection

    def _request(self, path: str, body: Mapping[str, Any]) -> bytes:
        content = encoded(body)
        headers = {
            "Host": self._address.netloc.rpartition("@")[2],
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **self.target.headers,
        }
        lines = [f"POST {self._address.path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


class _Connection(asyncio.Protocol):
    """One socket: the callbacks of asyncio and of the parser, and one reader at a time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.error: RemoteError | None = None
        self._begin()

    def _begin(self) -> None:
        """Expects the next response."""
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self._is_complete = False
        self._has_length = False
        self._is_kept = False
        self._now = time.perf_counter()

    @property
    def is_reusable(self) -> bool:
        """Whether the response is complete and the server keeps the connection."""
        return (
            self._is_complete
            and self.error is None
            and not self._transport.is_closing()
            and self._is_kept
        )

    def close(self) -> None:
        """Closes the socket, at once."""
        self._transport.abort()

    async def ask(self, request: bytes) -> bool:
        """Sends a request and awaits the answer's head; False when the other side is gone."""
        if self._transport.is_closing():
            return False
        self._begin()
        self._transport.write(request)
        while not (self.status or self._is_complete or self.error):
            await self._more()
        return self.status != 0

    async def pieces(self) -> AsyncGenerator[tuple[float, bytes], None]:
        """The body's pieces with their times. Raises RemoteError where it is cut off."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self.error is not None:
                raise self.error
            if self._is_complete:
                return
            await self._more()

    async def _more(self) -> None:
        """Until something has happened. Raises RemoteError after a silence of the timeout."""
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        alarm = loop.call_later(self._timeout_s, self._wake)
        begin = self._now
        try:
            await waiter
        finally:
            alarm.cancel()
            self._waiter = None
        if self._now == begin and not (self._is_complete or self.error):
            raise RemoteError(f"the server was silent for {self._timeout_s:g} s")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport: Any = transport  # uvloop's does not derive from asyncio's

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes; the moment that counts."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.error = RemoteError(f"the server does not speak HTTP: {error}")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the end. A body without a length ends here, any other one is cut off."""
        if self.status and not self._is_complete and (self._has_length or exc is not None):
            self.error = RemoteError("the answer was cut off: the connection was closed")
        self._is_complete = True
        self._wake()

    def on_header(self, name: bytes, _: bytes) -> None:
        """httptools: one header."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        """httptools: the head is complete."""
        self.status = self._parser.get_status_code()
        self._is_kept = self._parser.should_keep_alive()  # the parser forgets it at the end

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body, without its chunk's frame."""
        self._pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        """httptools: the response is complete."""
        self._is_complete = True
