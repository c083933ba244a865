"""The coordinator's side of a worker: one process of one engine, for one round."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import python_of

WORKERS = Path(__file__).parent / "workers"
QUIT_TIMEOUT_S = 60.0


class WorkerError(Exception):
    """An engine failed; the message is its own."""


@dataclass(frozen=True)
class EngineSpec:
    """An engine as it is compared: which worker, which environment, which form of the model."""

    name: str
    title: str
    worker: str
    environment: str
    variant: str
    scheme: str
    embedding_bytes: float  # an element, of the table that a step does not read
    options: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """A running worker. One message at a time."""

    def __init__(self, spec: EngineSpec, cache_dir: Path, log: Path) -> None:
        """Starts the process; nothing is loaded yet."""
        python = str(python_of(spec.environment, cache_dir))
        self.command = [python, str(WORKERS / f"{spec.worker}.py")]
        own = {} if spec.environment == "hearth" else {"PYTHONPATH": ""}
        self._spec = spec
        self._log = log.open("ab")
        self.spawned_at = time.monotonic()
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **own},
        )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and waits for its answer. Raises WorkerError."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()
            line = self._popen.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self._spec.name} ended with code {self._popen.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._spec.name}: {answer['error']}")
        self.spawned_at = answer.get("spawned_at", self.spawned_at)
        return answer

    def run(self, prompts: Sequence[Sequence[int]], num_new: int) -> dict[str, Any]:
        """The answer to "run"."""
        return self.ask({"op": "run", "prompts": prompts, "new": num_new})

    def close(self) -> None:
        """Ends the process, the quiet way first."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._log.close()
