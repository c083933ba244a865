"""Starts an engine process. Imports little, so that a CLI can call it before anything heavy.

The child inherits one end of a socketpair by number and is in a session of its own: an interrupt
from the terminal reaches the front end only, which then shuts its engine down in order.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

from hearth.core.config import EngineConfig
from hearth.engine.messages import Start, encode_frame


@dataclass(slots=True)
class EngineProcess:
    """A started engine process and the front end's end of its socket."""

    config: EngineConfig
    popen: subprocess.Popen[bytes]
    sock: socket.socket


def spawn_engine(config: EngineConfig, *, factory: str | None = None) -> EngineProcess:
    """Starts an engine and hands it its settings; returns at once, the engine loads meanwhile.

    Call it from the main thread: the kernel ends the child when the starting thread ends.
    `factory` ("module:function") replaces the start-up in `engine.startup`; for tests.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # -P: a user's directory must not shadow modules of the standard library.
    command = [sys.executable, "-P", "-m", "hearth.engine.process"]
    command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    if factory is not None:
        command += ["--factory", factory]
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    with theirs:
        popen = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
    with suppress(ConnectionError):  # it is gone already: whoever waits for it learns that
        ours.sendall(encode_frame(Start(config)))
    return EngineProcess(config, popen, ours)
