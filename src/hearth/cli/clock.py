"""StartupClock: where the time from the process's start to the first answer goes."""

from __future__ import annotations

import os
import time
from pathlib import Path


class StartupClock:
    """Phases follow each other without gaps; the first began with the process itself."""

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}
        self._start = self._last = _process_start()

    @property
    def total_s(self) -> float:
        """From the process's start to the end of the last phase."""
        return self._last - self._start

    def end(self, phase: str) -> None:
        """The phase that has just ended."""
        now = _now()
        self.phases_s[phase] = now - self._last
        self._last = now


def _now() -> float:
    """Seconds since the machine started, the clock in which the kernel notes a process's start."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _process_start() -> float:
    """Field 22 of proc(5) stat, in clock ticks; the present where there is no such file."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _now()
