"""Ctrl-C and SIGTERM outside of the server's orderly end: while it loads, and while it exits.

There is nothing to save then, so the process leaves at once. An exception would do worse: raised
in the middle of an import or of the event loop's own code it is shown as a trace, or lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import FrameType

SHOW_CURSOR = "\033[?25h"  # a progress bar hides it


def leave_on_signals(engine: subprocess.Popen[bytes] | None = None) -> None:
    """From now on SIGINT and SIGTERM end the engine process and this one (exit 128 + number)."""

    def leave(number: int, _: FrameType | None) -> None:
        if engine is not None and engine.returncode is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(engine.pid, signal.SIGKILL)
                os.waitpid(engine.pid, 0)
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), SHOW_CURSOR.encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
