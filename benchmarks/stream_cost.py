"""Where the time of a streamed token goes outside the model: processor time by process.

    python -m benchmarks.stream_cost [--streams 1,8,32,128] [--tokens 200] [--json FILE]

Streams completions from the built-in model to sockets that only read. Front end (HTTP, events,
text): the processor time of its threads (/proc/PID/task/*/schedstat). Engine (scheduler, plan,
results, messages): the wall-clock time between two calls of the kernels, in which it may also lose
its core to the front end or to the client. The kernels' own time is the tiny model's. Never
asserts.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving import Server, running_server

PROMPT = "What is hearth, and how do I serve a model with it?"
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Cost:
    """Microseconds, and the counts behind them."""

    streams: int
    tokens: int
    steps: int
    wall_s: float
    front_us_a_token: float
    engine_us_a_step: float
    kernels_us_a_step: float


@dataclass(frozen=True)
class _Reading:
    """Counters at one moment; seconds and numbers since the server's start."""

    front_s: float
    execute_s: float
    steps: int
    tokens: int


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    costs: list[Cost] = []
    flags = ("--max-num-seqs", str(max(counts)), "--speculative", "off")  # a token a step
    with running_server(*flags) as server:
        stream(server, 4, 20)
        print("streams   front end, us/token   engine, us/step   us/token   kernels, us/step")
        for count in counts:
            runs = [measure(server, count, options.tokens) for _ in range(options.repeats)]
            cost = sorted(runs, key=lambda run: run.front_us_a_token)[len(runs) // 2]
            engine = statistics.median(run.engine_us_a_step for run in runs)
            costs.append(cost)
            print(
                f"{count:7d}   {cost.front_us_a_token:19.1f}   {engine:15.0f}   "
                f"{engine * cost.steps / cost.tokens:8.1f}   {cost.kernels_us_a_step:16.0f}"
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


def measure(server: Server, num_streams: int, num_tokens: int) -> Cost:
    """One run."""
    before = _read(server)
    wall_s = stream(server, num_streams, num_tokens)
    after = _read(server)
    steps, tokens = after.steps - before.steps, after.tokens - before.tokens
    execute_s = after.execute_s - before.execute_s
    return Cost(
        num_streams,
        tokens,
        steps,
        wall_s,
        1e6 * (after.front_s - before.front_s) / tokens,
        1e6 * (wall_s - execute_s) / steps,
        1e6 * execute_s / steps,
    )


def stream(server: Server, num_streams: int, num_tokens: int) -> float:
    """Runs so many streams to their end; returns the seconds it took."""
    address = urlsplit(server.url)
    selector = selectors.DefaultSelector()
    started = time.perf_counter()
    for number in range(num_streams):
        sock = socket.create_connection((address.hostname, address.port))
        sock.sendall(_request(number, num_tokens))
        selector.register(sock, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            if not peer.recv(READ_BYTES):
                selector.unregister(peer)
                peer.close()
    return time.perf_counter() - started


def _request(number: int, num_tokens: int) -> bytes:
    body = json.dumps(
        {
            "prompt": f"{number}. {PROMPT}",
            "max_tokens": num_tokens,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _read(server: Server) -> _Reading:
    counts = server.health()["engine"]
    return _Reading(
        _processor_seconds(server.pids[0]),
        counts["execute_seconds"],
        counts["steps"],
        counts["generated_tokens"],
    )


def _processor_seconds(pid: int) -> float:
    """Of all threads that are alive."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    used = [(task / "schedstat").read_text(encoding="ascii").split()[0] for task in tasks]
    return sum(map(int, used)) / 1e9


if __name__ == "__main__":
    main()
