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
    """Milliseconds, and tokens a second over the whole run; tokens by the server's own count.

    Medians, but for the latency between events, which is a mean: events come together when one of
    the processes between engine and client is late, and then a median jumps where a mean does not.
    """

    ttft_ms: float
    itl_ms: float
    e2el_ms: float
    output_throughput: float
    num_prompt_tokens: int
    num_output_tokens: int


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class _Seen:
    """One request: its start, the times of its events with text, and the server's usage."""

    start: float
    times: list[float]
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


async def _request(connection: _Connection, path: str, body: bytes) -> _Seen:
    seen = _Seen(time.perf_counter(), [])
    reader, writer = connection
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    assert b" 200 " in status, status
    while line := await reader.readline():
        if line == b"0\r\n":  # the last chunk, and the blank line behind it
            assert await reader.readline() == b"\r\n"
            break
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        event: dict[str, Any] = json.loads(line[6:])
        assert "error" not in event, event
        if event.get("usage"):
            seen.num_prompt_tokens = event["usage"]["prompt_tokens"]
            seen.num_output_tokens = event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            if choice.get("text") or choice.get("delta", {}).get("content"):
                seen.times.append(now)
    assert seen.times, "the connection was closed"
    return seen


async def raw_load(
    port: int, bodies: list[dict[str, Any]], concurrency: int, path: str = "/v1/chat/completions"
) -> RawResult:
    """Sends all bodies (streamed, with usage), so many at a time, over as many connections."""
    free: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for _ in range(concurrency):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))

    async def one(body: dict[str, Any]) -> _Seen:
        connection = await free.get()
        seen = await _request(connection, path, json.dumps(body).encode())
        free.put_nowait(connection)
        return seen

    start = time.perf_counter()
    found = await asyncio.gather(*(one(body) for body in bodies))
    duration = time.perf_counter() - start
    while not free.empty():
        free.get_nowait()[1].close()
    gaps = [b - a for seen in found for a, b in itertools.pairwise(seen.times)]
    num_output_tokens = sum(seen.num_output_tokens for seen in found)
    return RawResult(
        1e3 * statistics.median(seen.times[0] - seen.start for seen in found),
        1e3 * statistics.fmean(gaps),
        1e3 * statistics.median(seen.times[-1] - seen.start for seen in found),
        num_output_tokens / duration,
        sum(seen.num_prompt_tokens for seen in found),
        num_output_tokens,
    )
