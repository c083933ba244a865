"""An OpenAI-like server of a few lines with known timing and failures: the truth for clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sent:
    """What the server did for one request; seconds of `time.perf_counter`.

    A send's time is taken before it, so that nobody can have seen the event earlier.
    """

    received_s: float
    texts_s: list[float] = field(default_factory=list)
    finished_s: float = 0.0


@dataclass
class Script:
    """How every request is answered; `failures` maps a request's number to what happens to it.

    `sent` has an entry for each request. Where `names_requests`, every text is "NUMBER.TOKEN ".
    """

    ttft_s: float = 0.05
    itl_s: float = 0.01
    num_tokens: int = 5
    has_usage: bool = True
    failures: dict[int, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    names_requests: bool = False
    sent: list[Sent] = field(default_factory=list)
    url: str = ""


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\r\n\r\n"


def _chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": reason}
    return _event({"choices": [choice]})


async def _answer(script: Script, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    number = len(script.bodies)
    script.bodies.append(body)
    sent = Sent(time.perf_counter())
    script.sent.append(sent)
    failure = script.failures.get(number, "")
    if failure == "429":
        refusal = b'{"error": {"message": "the queue is full"}}'
        head = f"HTTP/1.1 429 Busy\r\nContent-Length: {len(refusal)}\r\n\r\n"
        writer.write(head.encode() + refusal)
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    writer.write(_event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}))
    await asyncio.sleep(script.ttft_s)
    for i in range(script.num_tokens):
        sent.texts_s.append(time.perf_counter())
        writer.write(_chunk(f"{number}.{i} " if script.names_requests else f"{i} "))
        await writer.drain()
        if failure == "cut" and i == 1:
            return
        if failure == "event" and i == 1:
            writer.write(_event({"error": {"message": "the engine process is gone"}}))
            return
        await asyncio.sleep(script.itl_s)
    sent.finished_s = time.perf_counter()
    writer.write(_chunk("", "length"))
    if script.has_usage:
        usage = {"prompt_tokens": 7, "completion_tokens": script.num_tokens}
        writer.write(_event({"choices": [], "usage": usage}))
    writer.write(b": a comment\n\ndata: [DONE]\n\n")


@contextlib.asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[Script]:
    """Serves the script on a free port while the context lasts."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if head.startswith("get"):
                models = b'{"data": [{"id": "scripted"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(models))
                writer.write(b"Connection: close\r\n\r\n" + models)
            else:
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                await _answer(script, writer, json.loads(await reader.readexactly(length)))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
