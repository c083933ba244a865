"""Runs the HTTP server on one event loop from the engine's readiness to its end.

    serving ──signal──▶ draining (nothing new is accepted, requests may finish) ──▶ ended, exit 0
       │                   └──second signal, or the grace time is over──▶ answers are cut off
       └──engine dies──▶ /health says DOWN for a moment ──▶ ended, exit 6

In every case each running answer gets its one terminal event: its own, or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from hearth.core.errors import EngineDeadError
from hearth.serve.engine_port import EnginePort
from hearth.serve.http.connection import Connection
from hearth.serve.listen import BACKLOG

logger = logging.getLogger("hearth.serve")

# How long /health shows DOWN, and running streams take to send their error, before the exit.
DEATH_LINGER_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppableEngine(EnginePort, Protocol):
    """An engine whose process this server ends."""

    async def shutdown(self, grace_s: float = ...) -> int:
        """Ends running requests with an error and the process; returns its exit code."""
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve. `grace_s`: time after a signal for requests that have come."""

    grace_s: float = 15.0
    is_debug: bool = False


def uvicorn_config(app: FastAPI, *, is_debug: bool = False) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        lifespan="off",
        access_log=is_debug,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        backlog=BACKLOG,  # uvicorn calls listen() again, with its own 2048 unless told
    )


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers of its own; ours drain the engine, too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves one application on one listening socket, once."""

    def __init__(
        self, app: FastAPI, engine: StoppableEngine, sock: socket.socket, options: ServerOptions
    ) -> None:
        self._engine = engine
        self._sock = sock
        self._options = options
        self._num_signals = 0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._uvicorn = _Uvicorn(uvicorn_config(app, is_debug=options.is_debug))

    async def run(self) -> int:
        """Serves until a signal or the engine's death; returns the exit code.

        Takes SIGINT and SIGTERM while it runs; the handlers before it are not restored.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._sock]))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            ends: list[asyncio.Future[Any]] = [serving, stopping, self._engine.died]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._engine.died.done() and not self._stop.is_set():
                exit_code = await self._after_death()
            else:
                exit_code = await self._drain()
            await serving
            return exit_code
        finally:
            stopping.cancel()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self._num_signals += 1
        self._stop.set()
        if self._num_signals > 1:
            self._force.set()

    async def _after_death(self) -> int:
        """The engine is gone: its requests have had their errors; say so, and end."""
        code = self._engine.died.result()
        logger.error("engine_dead: the engine process ended with code %s; the server stops", code)
        await asyncio.sleep(DEATH_LINGER_S)
        self._uvicorn.should_exit = True
        await self._finish_answers()
        return EngineDeadError.exit_code

    async def _drain(self) -> int:
        """Stops accepting, lets running answers finish, then ends the engine."""
        self._uvicorn.should_exit = True
        if num_requests := max(self._engine.num_running, len(self._uvicorn.server_state.tasks)):
            logger.warning(
                "shutdown: waiting up to %.0f s for %d requests; again to stop at once",
                self._options.grace_s,
                num_requests,
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._until_idle(), self._options.grace_s)
        await self._engine.shutdown(1.0 if self._force.is_set() else 5.0)
        await self._finish_answers()
        return 0

    async def _until_idle(self) -> None:
        """Until no request is being read, prepared or answered, or a second signal came."""
        # Polled: the engine has no event for "no request runs", and this ends the process. Those
        # whose images are being loaded are no requests of the engine's yet, but tasks of uvicorn's.
        tasks = self._uvicorn.server_state.tasks
        while (self._engine.num_running or tasks) and not self._force.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _finish_answers(self) -> None:
        """Lets the last bytes out; connections that stay open after that are cut."""
        for _ in range(20):
            if not self._uvicorn.server_state.tasks:
                break
            await asyncio.sleep(0.05)
        self._uvicorn.force_exit = True
        for connection in list(self._uvicorn.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.close()
