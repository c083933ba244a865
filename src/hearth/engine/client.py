"""EngineClient: the front end's view of an engine process.

Owns the process and, for every running request, its prompt, seed and the tokens emitted so far.
Never starts a thread: the socket is an asyncio transport. Not thread-safe: everything but `start`
belongs to one event loop.

States: started → (wait_ready) → ready → dead. A request that `submit` accepted ends with exactly
one terminal event on its handle: the engine's own, CANCELLED after `cancel`, or ERROR when its
deadline comes or the engine dies. The deadline is watched on both sides: here, so that the client
hears in time however long a step takes; in the engine, so that no step is wasted on it. What the
engine says of a request after its end here is swallowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, cast

import msgspec

from hearth.core.config import EngineConfig
from hearth.core.errors import (
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    OverloadedError,
    RequestError,
)
from hearth.core.events import EngineStats
from hearth.core.request import FinishReason, Request, TokenEvent
from hearth.engine import messages
from hearth.engine.drain import DrainRate
from hearth.engine.messages import Progress, Ready
from hearth.engine.spawn import EngineProcess, spawn_engine

ProgressCallback: TypeAlias = Callable[[Progress], None]

logger = logging.getLogger("hearth.engine")

# The engine reads its socket once a step, so this much unread means that it hangs or is flooded.
MAX_UNSENT_BYTES = 64 << 20
_EXIT_POLL_S = 0.01


class RequestHandle:
    """One running request: an async iterator of its TokenEvents, for one consumer.

    Iteration ends after the event whose `finish_reason` is not None; that event is itself
    delivered. `emitted` holds the tokens received so far, delivered or not.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.emitted: list[int] = list(request.generated)
        self._events: deque[TokenEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False  # a terminal event was put
        self._drained = False  # the terminal event was delivered
        self._alarm: asyncio.TimerHandle | None = None  # rings at the deadline

    @property
    def is_ended(self) -> bool:
        """Whether the request has had its terminal event (delivered or not)."""
        return self._ended

    def __aiter__(self) -> RequestHandle:
        return self

    async def __anext__(self) -> TokenEvent:
        if self._drained:
            raise StopAsyncIteration
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        self._drained = event.finish_reason is not None
        return event

    def _put(self, event: TokenEvent) -> None:
        """Adds an event; nothing may follow a terminal one."""
        assert not self._ended, "an event after the terminal event"
        self.emitted.extend(event.tokens)
        self._events.append(event)
        self._ended = event.finish_reason is not None
        if self._ended and self._alarm is not None:
            self._alarm.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, reason: FinishReason, message: str = "", error_code: str = "") -> None:
        """Drops what was not delivered yet when cancelled, and puts the terminal event."""
        if reason is FinishReason.CANCELLED:
            self._events.clear()
        self._put(
            TokenEvent(
                self.request.request_id,
                finish_reason=reason,
                message=message,
                error_code=error_code,
            )
        )


class EngineClient(asyncio.Protocol):
    """Submits requests to one engine process and hands out what comes back."""

    def __init__(self, process: EngineProcess) -> None:
        self.process = process
        self._splitter = messages.FrameSplitter()
        self._decoder = msgspec.msgpack.Decoder(messages.FromEngine)
        self._transport: asyncio.WriteTransport | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._is_ready = False  # `_ready` may also be done because its waiter was cancelled
        self._died: asyncio.Future[int] | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._on_progress: ProgressCallback | None = None
        self._failed: messages.Failed | None = None
        self._running: dict[str, RequestHandle] = {}
        self._cancelled: set[str] = set()  # the engine still owes their terminal event
        self._stats: deque[asyncio.Future[EngineStats]] = deque()
        self._is_closing = False
        self._drain = DrainRate(time.monotonic)

    @classmethod
    def start(cls, config: EngineConfig, *, factory: str | None = None) -> EngineClient:
        """Starts an engine process; see `spawn.spawn_engine`. Needs no event loop."""
        return cls(spawn_engine(config, factory=factory))

    @property
    def config(self) -> EngineConfig:
        """The settings that the engine was started with."""
        return self.process.config

    @property
    def died(self) -> asyncio.Future[int]:
        """Resolves to the exit code once the process is gone. Valid after `wait_ready` began."""
        if self._died is None:
            raise EngineError("the engine is not connected yet: await wait_ready first")
        return self._died

    @property
    def is_alive(self) -> bool:
        """Whether the engine is ready and not gone."""
        return (
            self._is_ready
            and not self._is_closing
            and self._transport is not None
            and not self.died.done()
        )

    @property
    def num_running(self) -> int:
        """Requests submitted and not ended."""
        return len(self._running)

    async def wait_ready(self, on_progress: ProgressCallback | None = None) -> Ready:
        """Connects and waits until the engine takes requests. Call it once.

        Raises the engine's own error (ConfigError, ModelError, CapacityError, …) when it could
        not start, EngineDeadError when it died without a word.
        """
        loop = asyncio.get_running_loop()
        self._on_progress = on_progress
        self._ready = loop.create_future()
        self._died = loop.create_future()
        await loop.create_unix_connection(lambda: self, sock=self.process.sock)
        return await self._ready

    def submit(self, request: Request) -> RequestHandle:
        """Sends a request to the engine; returns at once.

        Raises OverloadedError when `max_num_seqs + max_queued_requests` requests are running or
        the engine does not take its messages, EngineDeadError, RequestError for a request_id in
        use.
        """
        transport = self._live_transport()
        request_id = request.request_id
        if request_id in self._running or request_id in self._cancelled:
            raise RequestError(f"request_id {request_id!r} is in use", param="request_id")
        self.check_room()
        frame = messages.encode_frame(messages.Submit(request))
        handle = RequestHandle(request)
        if not self._running:
            self._drain.note_busy()
        self._running[request_id] = handle
        transport.write(frame)
        if request.deadline:
            left_s = max(0.0, request.deadline - time.monotonic())
            loop = asyncio.get_running_loop()
            handle._alarm = loop.call_later(left_s, self._expire, request_id)
        return handle

    def check_room(self, num_more: int = 0) -> None:
        """Raises OverloadedError when a request would be refused after `num_more`; costs little."""
        scheduler = self.config.scheduler
        bound = scheduler.max_num_seqs + scheduler.max_queued_requests
        # Counted with those that the engine has not let go of: its own bound is never reached.
        if len(self._running) + len(self._cancelled) + num_more >= bound:
            raise OverloadedError(
                f"{bound} requests are running or queued, the limit (max_num_seqs "
                f"{scheduler.max_num_seqs} + max_queued_requests {scheduler.max_queued_requests})",
                hint="retry later",
                # By then half of the queue is empty: others come back, too.
                retry_after_s=self._drain.seconds_until(-(-scheduler.max_queued_requests // 2)),
            )
        if self._transport and self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            raise OverloadedError("the engine does not take its messages", hint="retry later")

    def cancel(self, request_id: str) -> None:
        """Ends a request: its handle gets a CANCELLED event. Unknown or ended ids are ignored."""
        self._end_early(request_id, FinishReason.CANCELLED)

    def _expire(self, request_id: str) -> None:
        """The request's deadline has come."""
        message = "the request's time was over before it was complete"
        self._end_early(request_id, FinishReason.ERROR, message, DeadlineExceededError.code)

    def _end_early(self, request_id: str, reason: FinishReason, *why: str) -> None:
        """The terminal event, now; the engine is told, and still owes its own."""
        handle = self._running.pop(request_id, None)
        if handle is None:
            return
        self._cancelled.add(request_id)
        handle._end(reason, *why)
        if self._transport is not None:
            self._transport.write(messages.encode_frame(messages.Cancel(request_id)))

    async def stats(self) -> EngineStats:
        """A snapshot, taken by the engine between two steps. Raises EngineDeadError."""
        transport = self._live_transport()
        reply: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats.append(reply)
        transport.write(messages.encode_frame(messages.StatsQuery()))
        return await reply

    async def shutdown(self, grace_s: float = 5.0) -> int:
        """Ends the engine process and returns its exit code; running requests end with ERROR.

        Asks first; after `grace_s` it terminates, and after as much again it kills. May be called
        at any time, also twice and before `wait_ready`.
        """
        self._is_closing = True
        if self._transport is None:
            self.process.sock.close()
        elif self._is_ready:
            self._transport.write(messages.encode_frame(messages.Shutdown()))
        else:
            self.process.popen.terminate()  # while it loads it does not read its socket
        for last_resort in (signal.SIGTERM, signal.SIGKILL):
            if await self._wait_exit(grace_s):
                break
            self.process.popen.send_signal(last_resort)
        if self._died is not None:
            return await asyncio.shield(self._died)
        await self._wait_exit(grace_s)
        return self.process.popen.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is attached to the loop."""
        # uvloop's transports have the methods, but do not derive from asyncio's classes.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the engine. A stream out of step ends the engine."""
        try:
            for payload in self._splitter.feed(data):
                self._take(self._decoder.decode(payload))
        except (msgspec.DecodeError, EngineError):
            self.process.popen.kill()
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the engine closed its end, which it does only by ending."""
        self._transport = None
        self._reaper = asyncio.get_running_loop().create_task(self._reap())

    def _live_transport(self) -> asyncio.WriteTransport:
        """The transport of a ready engine. Raises EngineDeadError or EngineError."""
        if not self._is_ready:
            raise EngineError("the engine is not ready: await wait_ready first")
        if self._transport is None or self._is_closing:
            raise EngineDeadError("the engine process is gone", hint="restart the server")
        return self._transport

    def _take(self, message: messages.FromEngine) -> None:
        """Handles one message of the engine."""
        if isinstance(message, messages.Events):
            for event in message.events:
                self._take_event(event)
        elif isinstance(message, messages.StatsReply):
            reply = self._stats.popleft()
            if not reply.done():
                reply.set_result(message.stats)
        elif isinstance(message, messages.Progress):
            self._report_progress(message)
        elif isinstance(message, messages.Failed):
            self._failed = message
        else:
            self._is_ready = True
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)

    def _report_progress(self, message: messages.Progress) -> None:
        """A callback that fails must not end the engine: it is not called again."""
        if self._on_progress is None:
            return
        try:
            self._on_progress(message)
        except Exception:
            logger.exception("the progress callback failed; it is not called again")
            self._on_progress = None

    def _take_event(self, event: messages.WireEvent) -> None:
        """Hands an event to its request, or swallows it after a cancel."""
        request_id = event.request_id
        is_terminal = event.finish_reason is not None
        handle = self._running.get(request_id)
        if handle is not None:
            handle._put(event.to_event())
        if is_terminal:
            self._running.pop(request_id, None)
            self._cancelled.discard(request_id)
            self._drain.note_end()

    async def _reap(self) -> None:
        """After the socket's end: ends all requests, then waits for the exit code."""
        self._end_requests()
        if not await self._wait_exit(2.0):
            self.process.popen.kill()  # it closed its socket, but hangs
            await self._wait_exit(2.0)
        code = self.process.popen.poll()
        code = code if code is not None else -signal.SIGKILL
        error = (
            messages.error_from(self._failed)
            if self._failed is not None
            else EngineDeadError(f"the engine process ended with {_describe_exit(code)}")
        )
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        while self._stats:
            reply = self._stats.popleft()
            if not reply.done():
                reply.set_exception(error)
        if self._died is not None and not self._died.done():
            self._died.set_result(code)

    def _end_requests(self) -> None:
        """One ERROR event for every running request."""
        message = (
            "the server is shutting down" if self._is_closing else "the engine process is gone"
        )
        handles = list(self._running.values())
        self._running.clear()
        self._cancelled.clear()
        for handle in handles:
            handle._end(FinishReason.ERROR, message, EngineDeadError.code)

    async def _wait_exit(self, timeout_s: float) -> bool:
        """Whether the process ended within the time; reaps it. No thread, no signal handler."""
        loop = asyncio.get_running_loop()
        if self.process.popen.poll() is not None:
            return True
        try:
            pidfd = os.pidfd_open(self.process.popen.pid)
        except (OSError, AttributeError):  # old kernels, sandboxes, other systems
            deadline = loop.time() + timeout_s
            # Without a pidfd an exit is only seen by looking: nothing could set an event.
            while self.process.popen.poll() is None and loop.time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(_EXIT_POLL_S)
            return self.process.popen.poll() is not None
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), timeout_s)
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self.process.popen.poll() is not None


def _describe_exit(code: int) -> str:
    """`signal SIGKILL` or `exit code 6`."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
