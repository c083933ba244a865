"""The real server as a subprocess, for tests: started as a user starts it, watched, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

START_TIMEOUT_S = 90.0
SMALL = ("--max-num-seqs", "4", "--kv-cache-memory-bytes", "64M")
ENDLESS = (*SMALL, "--window", "256")  # so that an answer of any length has room in the cache
ENDLESS_TOKENS = 900_000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(**changes: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEARTH_")}
    return {**clean, "COLUMNS": "120", "TERM": "dumb", **changes}


def command(*arguments: str, python: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *python, "-m", "hearth.cli", "serve", *arguments]


def run_to_end(
    *arguments: str, timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start; `variables` are those of its environment."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(**variables),
    )


def endless_model(model: Path, directory: Path) -> Path:
    """The model with a context of a million tokens (ENDLESS serves it): minutes at any speed."""
    for file in model.iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 1_000_000
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


class Server:
    """A running server; its output goes to files, so that no pipe can fill up."""

    def __init__(
        self, log_dir: Path, *arguments: str, python: Sequence[str] = (), **variables: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out, self._err = log_dir / "stdout.txt", log_dir / "stderr.txt"
        # Servers of other tests that run meanwhile take no cores from it.
        variables.setdefault("XDG_RUNTIME_DIR", str(log_dir))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                command("--port", str(self.port), *arguments, python=python),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=environment(**variables),
                cwd=log_dir,
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Try it" not in self.stdout:
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}: {self.stderr}"
            assert time.monotonic() < deadline, f"not ready: {self.stdout} {self.stderr}"
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.popen.poll() is None:
            self.stop()
        if error is not None:
            print(self.stdout, self.stderr)

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8")

    @property
    def engine_pid(self) -> int:
        """The one child of the server."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        (pid,) = children.read_text(encoding="ascii").split()
        return int(pid)

    def stop(self, number: int = signal.SIGINT, timeout: float = 30) -> int:
        self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=10).json()
        return body

    def wait_idle(self, timeout: float = 10) -> None:
        """Until the engine has no request any more."""
        deadline = time.monotonic() + timeout
        while (found := self.health())["running"] or found["waiting"]:
            assert time.monotonic() < deadline, f"requests are left: {found}"
            time.sleep(0.02)

    def connections_closed(self, timeout: float = 10) -> bool:
        """Waits until no client connection of the server is open; whether it came to that."""
        deadline = time.monotonic() + timeout
        process = psutil.Process(self.popen.pid)
        while any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp")):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def chat(self, content: Any, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "temperature": 0, **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)

    def ask(self, content: str, **fields: Any) -> str:
        response = self.chat(content, **fields)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    def curl_line(self) -> str:
        (line,) = re.findall(r"^curl .*$", self.stdout, re.MULTILINE)
        return str(line)
