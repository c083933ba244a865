"""Clients that never finish what they send, on a real socket: each is told so, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from fastapi import Request
from tests.unit.serve.fake_engine import FakeEngine, toy_model

from hearth.serve.app import create_app
from hearth.serve.http import body, connection
from hearth.serve.http.completion_schemas import CompletionRequest
from hearth.serve.http.server import uvicorn_config
from hearth.serve.listen import bind_socket

LIMIT_S = 0.2  # set where the client has sent what it must, so that no delay matters
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(toy_model().text.tokenizer, "hello world")


@pytest.fixture
async def port(engine: FakeEngine) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn_config(create_app(engine, toy_model())))
    with bind_socket("127.0.0.1", 0) as sock:
        serving = asyncio.ensure_future(server.serve(sockets=[sock]))
        yield int(sock.getsockname()[1])
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()


async def rest_of(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Head and error code of what comes before the server closes the connection."""
    head, _, content = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    return head, json.loads(content)["error"]["code"]


@pytest.mark.parametrize("sent", [POST, POST + b'{"prompt": '])
async def test_a_body_that_stands_still_is_refused(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "IDLE_S", LIMIT_S)
    async with opened(port) as (reader, writer):
        start = time.monotonic()
        writer.write(sent)
        head, code = await rest_of(reader)
        assert time.monotonic() - start >= LIMIT_S
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert code == "slow_request"


async def test_a_body_that_moves_on_is_read_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, now = asyncio.get_running_loop(), time.monotonic()
    monkeypatch.setattr(loop, "time", lambda: now)
    content = b'{"prompt": "Hi"}'

    async def receive() -> dict[str, object]:
        nonlocal content, now
        now += 0.9 * body.IDLE_S
        await asyncio.sleep(0)  # timers that are due run now
        await asyncio.sleep(0)
        piece, content = content[:1], content[1:]
        return {"type": "http.request", "body": piece, "more_body": bool(content)}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    assert (await body.Bodies(100).read(request, CompletionRequest)).prompt == "Hi"


async def test_a_connection_without_a_request_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", LIMIT_S)
    async with opened(port) as (reader, _):
        head, code = await rest_of(reader)
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert code == "slow_request"


@pytest.mark.parametrize("sent", [b"GET /v1/mod", GET[:-2] + b"A: b"])
async def test_a_head_that_does_not_end_is_refused(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(port) as (reader, writer):
        assert b" 200 OK" in await status_of_answer(reader, writer)
        monkeypatch.setattr(connection, "HEAD_S", LIMIT_S)
        start = time.monotonic()
        writer.write(sent)
        head, code = await rest_of(reader)
        assert time.monotonic() - start >= LIMIT_S
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert code == "slow_request"


async def status_of_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Asks for the models, and reads the whole answer."""
    writer.write(GET)
    status = await asyncio.wait_for(reader.readline(), 10)
    await reader.readuntil(b"}]}")
    return status


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nA: "])
async def test_a_head_without_end_is_not_kept(port: int, begin: bytes) -> None:
    async with opened(port) as (reader, writer):
        for piece in (begin, *[b"x" * (connection.MAX_HEAD_BYTES // 32)] * 32):
            writer.write(piece)
            await asyncio.sleep(0)
        head, code = await rest_of(reader)
    assert head.startswith(b"HTTP/1.1 431 ")
    assert code == "head_too_large"


async def test_a_connection_between_two_requests_may_wait(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(port) as (reader, writer):
        with monkeypatch.context() as meanwhile:
            assert b" 200 OK" in await status_of_answer(reader, writer)
            meanwhile.setattr(connection, "HEAD_S", LIMIT_S)
            await asyncio.sleep(2 * LIMIT_S)
        assert b" 200 OK" in await status_of_answer(reader, writer)


async def test_a_head_behind_a_running_answer_does_not_cut_it_off(
    port: int, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.stall_after = 1  # an answer that is on its way for longer than a head may take
    content = b'{"prompt": "Hi", "stream": true}'.ljust(100)
    async with opened(port) as (reader, writer):
        writer.write(POST + content)
        await reader.readuntil(b"data: ")
        monkeypatch.setattr(connection, "HEAD_S", LIMIT_S)
        writer.write(b"GET /v1/mod")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.5 * LIMIT_S):
                while await reader.read(1000):
                    pass
        assert not reader.at_eof()
        assert engine.running


async def test_an_answer_to_head_has_no_body(port: int) -> None:
    async with opened(port) as (reader, writer):
        writer.write(GET.replace(b"GET", b"HEAD") + GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert int(head.partition(b"content-length: ")[2].split()[0]) > 0
        assert b" 200 OK" in await reader.readline()  # at once the head of the next answer
