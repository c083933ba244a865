"""How a worker speaks with the coordinator: a line of JSON in, a line of JSON out.

Standard library only: it runs in every engine's own environment.

    {"op": "load", "model": …, "threads": 2, "max_len": …, "max_streams": …, "options": {…}}
        → {"facts": {…}}; where the engine is another process, "spawned_at" on the monotonic clock
    {"op": "run", "prompts": [[ids], …], "new": n}
        → {"begin": s, "arrivals": [[s, …], …]}: monotonic clock, one moment a token of a stream
    {"op": "settle"} → {}, when what the engine keeps for its next start is written
    {"op": "quit"} → {"peak_rss_bytes": …} over the whole process tree, and the worker ends

Anything that fails is {"error": …}. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """A loaded model."""

    def run(self, prompts: list[list[int]], num_new: int) -> list[list[float]]:
        """Greedy continuations of `num_new` tokens each, ends ignored; the moment of each token.

        Moments are those of `time.monotonic()`. What is prepared before the prompts are read is
        followed by `started()`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What it runs, as far as the engine says."""
        ...

    def close(self) -> None:
        """Releases it."""
        ...


class Loader(Protocol):
    """Makes an engine from the message "load"."""

    def __call__(self, message: dict[str, Any]) -> Engine: ...


def status_bytes(pid: int, key: str) -> int:
    """A size of /proc/PID/status; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else 0


def process_tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text(encoding="ascii").split()
        except OSError:  # a thread that has ended
            continue
        for child in children:
            found += process_tree(int(child))
    return found


def peak_rss_bytes(pids: list[int]) -> int:
    """Sum of the peaks of resident memory; mapped files count."""
    return sum(status_bytes(pid, "VmHWM") for pid in pids)


_begin = 0.0


def started() -> None:
    """Called by an engine when it begins to read the prompts."""
    global _begin  # noqa: PLW0603 (one run at a time)
    _begin = time.monotonic()


def serve(load: Loader) -> None:
    """Answers messages until "quit" or end of file."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if message["op"] == "load":
                engine = load(message)
                answer = {"facts": engine.facts()}
                spawned_at = getattr(engine, "spawned_at", None)
                if spawned_at is not None:
                    answer["spawned_at"] = spawned_at
            elif message["op"] == "run" and engine is not None:
                started()
                arrivals = engine.run(message["prompts"], message["new"])
                answer = {"begin": _begin, "arrivals": arrivals}
            elif message["op"] == "settle":
                getattr(engine, "settle", lambda: None)()
            elif message["op"] == "quit":
                answer = {"peak_rss_bytes": _peak(engine)}
            else:
                answer = {"error": f"{message['op']} comes too early, or is not known"}
        except Exception as error:  # noqa: BLE001 (the coordinator shows it and goes on)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if message["op"] == "quit":
            break
    if engine is not None:
        engine.close()
    os._exit(0)  # engines' own threads must not keep it


def _peak(engine: Engine | None) -> int:
    """Of the engine's processes where it names them, otherwise of this one and its children."""
    pid = getattr(engine, "pid", os.getpid())
    return peak_rss_bytes(process_tree(pid))
