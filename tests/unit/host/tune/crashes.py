"""Dies at a chosen moment of a run of hearth tune. Run as a program, it does so by SIGKILL:

    python crashes.py ROOT apply|rollback EVENT

The moments are counted: before and after each line of the journal, in the middle of it, before and
after each change, and between a file's draft and its name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.host.tune.trees import FakeKernel, plan_of

from hearth.host.tune.journal import Journal, open_journal
from hearth.host.tune.places import Kind
from hearth.host.tune.runner import apply_plan, roll_back


class Fuse:
    """Calls `die` at the event of that number, counted from 0."""

    def __init__(self, event: int, die: Callable[[], None]) -> None:
        self._left = event
        self._die = die

    def burn(self) -> bool:
        """Whether this is the moment; the caller may leave something half done first."""
        self._left -= 1
        return self._left == -1

    def event(self) -> None:
        if self.burn():
            self._die()

    def die(self) -> None:
        self._die()


def crashing_journal(fuse: Fuse) -> type[Journal]:
    class Crashing(Journal):
        def append(self, line: dict[str, Any]) -> None:
            fuse.event()
            if fuse.burn():  # half a line
                text = json.dumps(line)
                with self.path.open("a") as file:
                    file.write(text[: len(text) // 2])
                fuse.die()
            super().append(line)
            fuse.event()

    return Crashing


class CrashingKernel(FakeKernel):
    def __init__(self, root: Path, fuse: Fuse) -> None:
        super().__init__(root)
        self._fuse = fuse

    def write(self, kind: Kind, path: str, text: str | None) -> None:
        self._fuse.event()
        if kind == "file" and text is not None and self._fuse.burn():
            where = self.root / path
            where.with_name(f".{where.name}.hearth-draft").write_text(text[:7])
            self._fuse.die()
        super().write(kind, path, text)
        self._fuse.event()


def run(root: Path, what: str, fuse: Fuse, chosen: frozenset[str], *, persist: bool) -> None:
    kernel = CrashingKernel(root, fuse)
    with open_journal(journal_of(root), kind=crashing_journal(fuse)) as journal:
        if what == "apply":
            plan = plan_of(kernel, chosen, persist=persist)
            apply_plan(plan, kernel, journal, persist=persist)
        else:
            roll_back(kernel, journal)


def journal_of(root: Path) -> Path:
    return root / "var/lib/hearth/tune.journal"


CHOSEN = frozenset({"swappiness", "governor", "thp"})


def main() -> None:
    root, what, event = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    fuse = Fuse(event, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(root, what, fuse, CHOSEN, persist=True)


if __name__ == "__main__":
    main()
