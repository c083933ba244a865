"""An independent load generator on bare sockets: what `hearth bench` is checked against.

Shares no code with hearth: HTTP/1.1 by hand, chunked bodies, one clock reading an event.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any


@dataclass
class RawResult:
    """Medians in milliseconds, and tokens a second over the whole run."""

    ttft_ms: float
    itl_ms: float
    e2el_ms: float
    output_throughput: float


async def _request(port: int, body: bytes) -> tuple[float, list[float], int]:
    """Start, times of the events with text, output tokens."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    times: list[float] = []
    num_tokens = 0
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        event: dict[str, Any] = json.loads(line[6:])
        if event.get("usage"):
            num_tokens = event["usage"]["completion_tokens"]
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            times.append(now)
    writer.close()
    return start, times, num_tokens


async def raw_load(port: int, bodies: list[dict[str, Any]], concurrency: int) -> RawResult:
    """Sends all bodies (streamed chats with usage), so many at a time."""
    slots = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> tuple[float, list[float], int]:
        async with slots:
            return await _request(port, json.dumps(body).encode())

    start = time.perf_counter()
    found = await asyncio.gather(*(one(body) for body in bodies))
    duration = time.perf_counter() - start
    gaps = [b - a for _, times, _ in found for a, b in itertools.pairwise(times)]
    return RawResult(
        1e3 * statistics.median(times[0] - begin for begin, times, _ in found),
        1e3 * statistics.median(gaps),
        1e3 * statistics.median(times[-1] - begin for begin, times, _ in found),
        sum(num for _, _, num in found) / duration,
    )
