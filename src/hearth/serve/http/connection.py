"""A client's connection: the head of a request is bounded in size and in time.

Uvicorn's own protocol has neither bound: a head of any size would be kept in memory, and a
connection on which none ever ends would stay open. The bounds of bodies are in `body`, those of
waiting between two requests are uvicorn's.

    opened ──first byte──▶ head ──its end──▶ request and answer ──first byte of the next──▶ head
       └─── HEAD_S ─────────▶│◀── HEAD_S for the rest, MAX_HEAD_BYTES ──▶ refused and closed
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hearth.core.errors import HearthError, RequestError
from hearth.serve.http.errors import SlowRequestError, error_response

MAX_HEAD_BYTES: Final = 64 << 10  # checked once a read: the last one may go beyond it
HEAD_S: Final = 60.0


class HeadTooLargeError(RequestError):
    """The request's line and headers are larger than any client of this API sends."""

    code = "head_too_large"
    http_status = 431


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol on httptools, with the bounds."""

    _head_timer: asyncio.TimerHandle | None = None
    _is_in_head: bool = False
    _num_head_bytes: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come; it has HEAD_S for the head of its first request."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whom ever."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What one read brought."""
        super().data_received(data)
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HeadTooLargeError(
                        f"the request's line and headers have more than {MAX_HEAD_BYTES:,} bytes"
                    )
                )

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes = True, 0
        if self._head_timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._on_timer)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_timer(self) -> None:
        if self._is_answering():  # a head behind it must not cut an answer off
            self._start_timer()
            return
        self._refuse(SlowRequestError(f"the request's head did not come within {HEAD_S:g} s"))

    def _is_answering(self) -> bool:
        # Uvicorn's annotation does not say that there is none before the first request.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _refuse(self, error: HearthError) -> None:
        self._is_in_head = False
        self._stop_timer()
        if self.transport.is_closing():
            return
        if not self._is_answering():
            self.transport.write(_whole_response(error))
        self.transport.close()


def _whole_response(error: HearthError) -> bytes:
    """The error's response as it goes over the wire."""
    response = error_response(error)
    status = HTTPStatus(error.http_status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
