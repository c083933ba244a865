"""The engine process: `python -m hearth.engine.process --fd N --parent PID`.

Owns the loop: take messages, make a step, send its events. Ends with 0 after Shutdown or when the
front end is gone, with the error's exit code when it cannot start, with EngineError's when a step
broke in a way that leaves the engine in doubt.

Order matters here: OPENBLAS_NUM_THREADS must be set before numpy is imported (its import starts
the BLAS threads), so nothing that imports numpy stands at the top of this module.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from hearth.core.config import EngineConfig
from hearth.core.errors import EngineError, HearthError
from hearth.engine.connection import Connection
from hearth.engine.messages import (
    Cancel,
    Events,
    Failed,
    Progress,
    Shutdown,
    Start,
    StatsQuery,
    StatsReply,
    Submit,
    ToEngine,
    failed_from,
)

if TYPE_CHECKING:
    from hearth.engine.engine import Engine
    from hearth.engine.startup import StartedEngine

logger = logging.getLogger("hearth.engine")

ReportProgress: TypeAlias = Callable[[str, int, int], None]
EngineFactory: TypeAlias = "Callable[[EngineConfig, ReportProgress], StartedEngine]"

DEFAULT_FACTORY = "hearth.engine.startup:start"
PR_SET_PDEATHSIG = 1  # prctl(2)
PROGRESS_INTERVAL_S = 0.05
LAST_WORDS_S = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Runs an engine until it is told to stop; returns the exit code."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(prog="hearth.engine.process")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--factory", default=DEFAULT_FACTORY)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _follow_parent(options.parent)
    connection = Connection(socket.socket(fileno=options.fd))
    try:
        code = _run(connection, options.factory)
    except EOFError:
        return 0  # the front end is gone: nobody is left to answer
    # Packed weights may still be on their way to the disk. The socket stays open meanwhile: a front
    # end that sees it closed waits for the exit no longer than it must.
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    return code


def _follow_parent(parent: int) -> None:
    """Dies with the parent, even in the middle of a step, and leaves interrupts to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            sys.exit(0)


def _run(connection: Connection, factory_name: str) -> int:
    """Starts the engine, serves, ends. Raises EOFError when the front end goes away."""
    config = _await_config(connection)
    try:
        started = _load_factory(factory_name)(config, _progress_to(connection))
    except EOFError:
        raise
    except HearthError as error:
        return _refuse(connection, failed_from(error))
    except Exception as error:
        logger.exception("engine_start_failed")
        message = f"the engine could not start: {type(error).__name__}: {error}"
        return _refuse(connection, failed_from(EngineError(message)))
    connection.send(started.ready)
    try:
        return _serve(connection, started.engine)
    finally:
        started.engine.close()


def _refuse(connection: Connection, failed: Failed) -> int:
    """Tells the front end why there will be no engine; returns the exit code."""
    connection.send(failed)
    connection.drain(LAST_WORDS_S)
    return failed.exit_code


def _await_config(connection: Connection) -> EngineConfig:
    """The settings, which are the first message."""
    while True:
        for message in connection.receive(wait=True):
            if not isinstance(message, Start):
                raise EngineError(f"the first message is {type(message).__name__}, not Start")
            return message.config


def _load_factory(name: str) -> EngineFactory:
    """The start-up function, imported only now: it brings numpy in."""
    module, _, function = name.partition(":")
    factory: Any = getattr(importlib.import_module(module), function)
    return factory  # type: ignore[no-any-return]  # named on the command line


def _progress_to(connection: Connection) -> ReportProgress:
    """Sends progress, at most every PROGRESS_INTERVAL_S and at the end of each phase."""
    last = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= PROGRESS_INTERVAL_S:
            last = now
            connection.send(Progress(phase, done, total))

    return report


def _serve(connection: Connection, engine: Engine) -> int:
    """The loop of a running engine."""
    while True:
        is_congested = connection.is_congested
        if is_congested:
            engine.note_stall()
        elif not engine.has_work:
            engine.check_when_idle()
        for message in connection.receive(wait=is_congested or not engine.has_work):
            if isinstance(message, Shutdown):
                return 0
            _handle(connection, engine, message)
        if connection.is_congested:
            continue
        try:
            events = engine.step()
        except Exception:
            logger.exception("engine_step_failed")
            connection.send(Events(engine.fail_all("the engine failed; its log has the cause")))
            connection.drain(LAST_WORDS_S)
            return EngineError.exit_code
        if events:
            connection.send(Events(events))


def _handle(connection: Connection, engine: Engine, message: ToEngine) -> None:
    """Acts on one message; its events go out with those of the next step."""
    if isinstance(message, Submit):
        engine.submit(message.request)
    elif isinstance(message, Cancel):
        engine.cancel(message.request_id)
    elif isinstance(message, StatsQuery):
        events = engine.take_events()  # the reply must not overtake what it has counted
        if events:
            connection.send(Events(events))
        connection.send(StatsReply(engine.stats()))
    else:
        raise EngineError(f"{type(message).__name__} is not expected after the start")


if __name__ == "__main__":
    sys.exit(main())
