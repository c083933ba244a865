"""The engine process's end of the socket: blocking when there is nothing to do, never otherwise.

What the front end does not take stays in an outbox here. The engine must look at `is_congested`
and make no further step while it is: so a slow front end costs speed, never memory.
"""

from __future__ import annotations

import logging
import select
import socket

import msgspec

from hearth.engine import messages

READ_BYTES = 1 << 18
# Some 30,000 events: seconds of a busy engine.
CONGESTED_BYTES = 1 << 20

logger = logging.getLogger("hearth.engine")


class Connection:
    """Frames in, frames out, over a non-blocking stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._splitter = messages.FrameSplitter()
        self._decoder = msgspec.msgpack.Decoder(messages.ToEngine)
        self._outbox = bytearray()
        self._poll = select.poll()

    @property
    def is_congested(self) -> bool:
        """Whether the other side is so far behind that nothing more should be produced."""
        return len(self._outbox) > CONGESTED_BYTES

    def receive(self, *, wait: bool) -> list[messages.ToEngine]:
        """Messages that have arrived; with `wait`, sleeps until there is at least something to do.

        May return an empty list. Raises EOFError when the other side is gone.
        """
        if wait:
            self._sleep()
        if self._outbox:
            self._flush()
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return [self._decoder.decode(payload) for payload in self._splitter.feed(data)]

    def send(self, message: messages.FromEngine) -> None:
        """Sends what the socket takes now, keeps the rest. Raises EOFError."""
        self._outbox += messages.encode_frame(message)
        self._flush()

    def drain(self, timeout_s: float) -> None:
        """Waits until everything is sent or the time is over; for the last words of an engine."""
        self._sock.settimeout(timeout_s)
        try:
            self._sock.sendall(self._outbox)
        except TimeoutError:
            logger.warning("engine_last_words_lost bytes=%d", len(self._outbox))
        except ConnectionError as error:
            raise EOFError from error
        self._outbox.clear()
        self._sock.setblocking(False)

    def _sleep(self) -> None:
        """Until the socket can be read, or written if something waits to be."""
        interest = select.POLLIN | (select.POLLOUT if self._outbox else 0)
        self._poll.register(self._sock, interest)
        self._poll.poll()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._outbox)
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise EOFError from error
        del self._outbox[:sent]
