"""What the benchmarks of a running server share: a server, streams with their times, figures."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tools.demo_model import TEXT_MODEL_DIR

from hearth.client.sse import DONE
from hearth.client.streaming import StreamPool
from hearth.client.wire import Target, parse_event
from hearth.core.errors import RemoteError

START_TIMEOUT_S = 120.0
# Random weights with the text model's tokenizer, by millions of parameters: a prefill costs
# something.
DUMMIES: Mapping[str, Mapping[str, Any]] = {
    "14M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
    "100M": {"hidden_size": 768, "intermediate_size": 2816, "num_hidden_layers": 12},
}


@dataclass(frozen=True)
class Server:
    """A server under test; `pids`: the front end's and the engine's."""

    url: str
    pids: tuple[int, int]
    popen: subprocess.Popen[bytes]
    log: Path

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        body: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=30, trust_env=False).json()
        return body


@contextlib.contextmanager
def running_server(
    *flags: str, changes: Mapping[str, Any] | None = None, python: str = sys.executable
) -> Iterator[Server]:
    """`hearth serve` on a free port, ended afterwards.

    `changes` (one of DUMMIES) make another model with random weights; `python` is
    another interpreter, to compare with another version.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server must not stay behind
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        arguments = [python, "-m", "hearth.cli", "serve"]
        if changes is not None:
            arguments += [str(_dummy_model(directory / "dummy", changes)), "--load-format", "dummy"]
        log = directory / "log.txt"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [*arguments, "--port", "0", *flags], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield _wait_ready(popen, log)
        finally:
            popen.terminate()
            popen.wait(60)


def _dummy_model(directory: Path, changes: Mapping[str, Any]) -> Path:
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TEXT_MODEL_DIR / name, directory)
    config = json.loads((TEXT_MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    heads = {
        "head_dim": 64,
        "num_attention_heads": changes["hidden_size"] // 64,
        "num_key_value_heads": 2,
        "max_position_embeddings": 20480,
    }
    text = json.dumps({**config, **heads, **changes})
    (directory / "config.json").write_text(text, encoding="utf-8")
    return directory


def _wait_ready(popen: subprocess.Popen[bytes], log: Path) -> Server:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        text = log.read_text(encoding="utf-8")
        if "Try it" in text and (found := re.search(r"http://127\.0\.0\.1:\d+", text)):
            children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children")
            (engine,) = children.read_text(encoding="ascii").split()
            return Server(found.group(), (popen.pid, int(engine)), popen, log)
        if popen.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start:\n{text}")
        time.sleep(0.05)


@dataclass
class Seen:
    """One streamed request: its start, the times of its texts, its end or its error."""

    started: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    num_tokens: int = 0
    finish_reason: str | None = None
    error: str = ""
    status: int = 200

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.started if self.times else math.nan

    @property
    def ended(self) -> float:
        """When the last text came."""
        return self.times[-1] if self.times else self.started

    def gaps(self) -> Iterator[tuple[float, float]]:
        """(when it ended, seconds) of each gap between two texts."""
        for before, after in zip(self.times, self.times[1:]):
            yield after, after - before


@contextlib.asynccontextmanager
async def streams_to(server: Server) -> AsyncIterator[StreamPool]:
    """A pool of connections."""
    pool = StreamPool(Target(server.url))
    try:
        yield pool
    finally:
        pool.close()


async def follow(pool: StreamPool, body: Mapping[str, Any], seen: Seen | None = None) -> Seen:
    """Sends a completion or a chat and watches it to its end; an error is noted."""
    seen = seen or Seen(time.perf_counter())
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with contextlib.aclosing(pool.stream(path, {**body, **options})) as arrivals:
            async for arrival in arrivals:
                for payload in arrival.payloads:
                    if payload != DONE:
                        _take(seen, arrival.seconds, payload)
    except RemoteError as error:
        seen.error, seen.status = error.message, error.status or 0
    return seen


def _take(seen: Seen, now: float, payload: bytes) -> None:
    piece = parse_event(payload)
    seen.num_tokens = piece.num_completion_tokens or seen.num_tokens
    seen.finish_reason = piece.finish_reason or seen.finish_reason
    if piece.text:
        seen.times.append(now)
        seen.text += piece.text


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies (nearest rank); NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def in_ms(values: Sequence[float]) -> str:
    """`p50 / p99 / max` in milliseconds."""
    return " / ".join(f"{1e3 * quantile(values, share):7.1f}" for share in (0.5, 0.99, 1.0))
