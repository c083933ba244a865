"""How much of the machine other processes took while an engine was measured.

The bandwidth between two samples says nothing of what happened during one: on a few cores a
compiler beside it halves an engine whose threads wait for each other.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.workers.protocol import process_tree

TICKS = os.sysconf("SC_CLK_TCK")
IDLE, IOWAIT, GUEST = 3, 4, 8  # columns of /proc/stat; guest time is counted in user time already


@dataclass(frozen=True)
class Moment:
    """Processor seconds so far."""

    now_s: float
    busy_s: float  # of the whole machine, what its host took included
    own_s: float  # of this process tree, children that have ended included

    def others_since(self, before: Moment) -> float:
        """Cores that others kept busy in between, on average."""
        busy, own = self.busy_s - before.busy_s, self.own_s - before.own_s
        return max(0.0, (busy - own) / (self.now_s - before.now_s))


def moment() -> Moment:
    """Now; this process and all that it started are no others."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    busy = sum(int(x) for i, x in enumerate(first[:GUEST]) if i not in {IDLE, IOWAIT})
    own = sum(_process_s(pid) for pid in process_tree(os.getpid()))
    return Moment(time.monotonic(), busy / TICKS, own)


def _process_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:  # it has ended; its parent's children's time has it
        return 0.0
    fields = text.rpartition(")")[2].split()  # from the third on
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS
