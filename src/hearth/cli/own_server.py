"""A server for one command: the one that runs already, or one of its own that ends with it.

The own server is an ordinary `hearth serve` on a free port, in a session of its own, so that a
Ctrl-C at the terminal reaches the command only. Its output goes to a file and is shown when it
could not start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import IO

from hearth.cli.connection import DEFAULT_URL
from hearth.client.blocking import BlockingClient
from hearth.client.wire import Target
from hearth.core.errors import RemoteError

PROBE_TIMEOUT_S = 2.0
END_TIMEOUT_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def connect(base_url: str | None, api_key: str | None, model: str | None) -> Iterator[Target]:
    """A server that answers.

    `base_url`: that one. Else `model`: a server of our own for this directory. Else the server at
    the default address, or one of our own for the built-in model where none is there.

    Raises RemoteError.
    """
    target = Target(base_url or DEFAULT_URL, api_key)
    if base_url is None and (model is not None or not _is_there(target)):
        with _own_server(model) as url:
            yield replace(target, base_url=url)
    else:
        yield target


def _is_there(target: Target) -> bool:
    try:
        with BlockingClient(target) as client:
            client.model_names(PROBE_TIMEOUT_S)
    except RemoteError as error:
        return error.status is not None  # a refusal is an answer, too
    return True


@contextlib.contextmanager
def _own_server(model: str | None) -> Iterator[str]:
    """Starts a server and ends it; yields its address."""
    shown = "the built-in model" if model is None else model
    print(f"starting a server for {shown} …", file=sys.stderr, flush=True)
    port = _free_port()
    command = [sys.executable, "-m", "hearth.cli", "serve", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(
            [*command, *([model] if model is not None else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in ("HEARTH_HOST", "HEARTH_PORT")},
        )
        with _ended_by_signals():
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(popen, url, log)
                yield url
            finally:
                _end(popen)


def _wait(popen: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Until it answers. Raises RemoteError with the server's own words when it ends instead."""
    with BlockingClient(Target(url)) as client:
        while popen.poll() is None:
            with contextlib.suppress(RemoteError):
                client.model_names(PROBE_TIMEOUT_S)
                return
            time.sleep(0.05)
    log.seek(0)
    words = log.read().decode("utf-8", "replace").strip()
    raise RemoteError(f"the server could not start:\n{words}")


def _end(popen: subprocess.Popen[bytes]) -> None:
    if popen.poll() is None:
        popen.terminate()
        try:
            popen.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A closed terminal or a SIGTERM ends the command in order, and with it the server."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
