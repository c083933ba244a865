"""Starts a server in the order that makes it quick and its failures early.

    bind the port ─ start the engine process ─ import the HTTP stack ─ read the tokenizer ─
    wait for the engine ─ serve

The engine loads its weights while this process imports FastAPI. Whatever fails afterwards, the
engine process is ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from hearth.cli.clock import StartupClock
from hearth.cli.interrupts import leave_on_signals
from hearth.cli.settings import ServeSettings
from hearth.host.open_files import raise_open_files
from hearth.serve.listen import bind_socket

if TYPE_CHECKING:
    from hearth.engine.client import EngineClient
    from hearth.serve.model import TextFiles

logger = logging.getLogger("hearth.serve")

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logging(level: str) -> None:
    """Logs to stderr. Uvicorn's own news are of interest only when debugging."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if level != "debug":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)


def launch(settings: ServeSettings) -> int:
    """Serves until the end; returns the exit code. Raises HearthError."""
    # Before anything imports numpy, here or in the engine: its import starts the BLAS threads.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    clock = StartupClock()
    clock.end("python")
    leave_on_signals()
    _raise_open_files()
    sock = bind_socket(settings.host, settings.port)
    with sock:
        from hearth.engine.client import EngineClient

        client = EngineClient.start(settings.engine)
        leave_on_signals(client.process.popen)
        clock.end("engine process")
        try:
            return _serve(settings, clock, client, sock)
        finally:
            _end_process(client)


def _raise_open_files() -> None:
    """Before the engine is started, which takes the limit over."""
    found = raise_open_files()
    logger.info("open_files limit %d, was %d: %s", found.limit, found.former, found.reason)


def _serve(
    settings: ServeSettings, clock: StartupClock, client: EngineClient, sock: socket.socket
) -> int:
    import uvloop

    import hearth.serve.app
    import hearth.serve.http.server  # noqa: F401 -- here, so that its time is counted
    from hearth.serve.model import load_text_files

    clock.end("HTTP stack")
    text = load_text_files(settings.model_dir)
    clock.end("tokenizer")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, clock, client, sock, text))


async def _run(
    settings: ServeSettings,
    clock: StartupClock,
    client: EngineClient,
    sock: socket.socket,
    text: TextFiles,
) -> int:
    from hearth.cli.banner import Banner, print_banner
    from hearth.cli.progress import LoadProgress
    from hearth.serve.app import create_app
    from hearth.serve.http.server import HttpServer, ServerOptions
    from hearth.serve.model import served_model

    try:
        with LoadProgress() as progress:
            ready = await client.wait_ready(progress.update)
        clock.end("waiting for the engine")
        model = served_model(
            settings.names,
            text,
            ready.resolved,
            ready.generation,
            int(time.time()),
            ready.executor.name,
            separates_reasoning=settings.separates_reasoning,
        )
        app = create_app(
            client,
            model,
            max_body_bytes=settings.max_body_bytes,
            request_timeout_s=settings.request_timeout_s,
            media=settings.media,
        )
        options = ServerOptions(settings.shutdown_timeout_s, settings.log_level == "debug")
        server = HttpServer(app, client, sock, options)
        clock.end("application")
        port = int(sock.getsockname()[1])
        print_banner(Banner(settings, port, model, ready, clock))
        return await server.run()
    finally:
        leave_on_signals(client.process.popen)
        await client.shutdown()


def _end_process(client: EngineClient) -> None:
    """The last resort, for what failed before or outside of the event loop."""
    if client.process.popen.poll() is None:
        client.process.popen.kill()
        client.process.popen.wait()
