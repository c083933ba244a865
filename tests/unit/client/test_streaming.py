"""Streams over plain sockets: reused connections, and servers that misbehave in every way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from hearth.client.streaming import StreamPool
from hearth.client.wire import Target
from hearth.core.errors import RemoteError

Answer = Callable[[asyncio.StreamWriter, int], object]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def serving(
    answer: Answer, timeout_s: float = 5.0
) -> AsyncIterator[tuple[StreamPool, list[int]]]:
    """A pool to a server that answers one request after the other; and how many each socket had."""
    counts: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(counts)
        counts.append(0)
        if task := asyncio.current_task():
            tasks.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
                counts[number] += 1
                answer(writer, sum(counts))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = StreamPool(Target(f"http://127.0.0.1:{port}/v1", timeout_s=timeout_s))
    try:
        yield pool, counts
    finally:
        pool.close()
        server.close()
        await asyncio.gather(*tasks)  # each ends with its socket


async def payloads(pool: StreamPool) -> list[bytes]:
    return [p async for arrival in pool.stream("/v1/x", {"a": "ü"}) for p in arrival.payloads]


def two_events(writer: asyncio.StreamWriter, _: int) -> None:
    whole = chunk(b"data: 1\n\nda") + chunk(b"ta: 2\n\n") + b"0\r\n\r\n"
    writer.write(CHUNKED + whole)


async def test_a_connection_is_used_again_when_its_stream_has_ended() -> None:
    async with serving(two_events) as (pool, counts):
        for _ in range(3):
            assert await payloads(pool) == [b"1", b"2"]
        assert counts == [3]
        await asyncio.gather(*(payloads(pool) for _ in range(4)))
        assert len(counts) == 4, "streams at the same time have connections of their own"


async def test_a_stream_that_is_left_closes_its_connection() -> None:
    async with serving(two_events) as (pool, counts):
        async with contextlib.aclosing(pool.stream("/x", {})) as events:
            async for _ in events:
                break
        assert await payloads(pool) == [b"1", b"2"]
        assert len(counts) in {1, 2}  # one where the whole answer had been read already


async def test_a_connection_that_the_server_closed_meanwhile_is_no_failure() -> None:
    def answer(writer: asyncio.StreamWriter, number: int) -> None:
        two_events(writer, number)
        asyncio.get_running_loop().call_later(0.01, writer.close)

    async with serving(answer) as (pool, counts):
        assert await payloads(pool) == [b"1", b"2"]
        await asyncio.sleep(0.05)
        assert await payloads(pool) == [b"1", b"2"]
        assert counts == [1, 1]


async def test_times_are_those_of_the_reads() -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            await asyncio.sleep(0.03)
            writer.write(chunk(b"data: x\n\n"))
        writer.write(b"0\r\n\r\n")

    tasks: list[asyncio.Task[None]] = []

    def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(CHUNKED)
        tasks.append(asyncio.ensure_future(slowly(writer)))

    async with serving(answer) as (pool, _):
        arrivals = []
        async for arrival in pool.stream("/x", {}):
            arrivals.append(arrival.seconds)
            await asyncio.sleep(0.025)  # a busy consumer changes nothing about them
        assert len(arrivals) == 3
        for before, after in itertools.pairwise(arrivals):
            assert 0.028 < after - before < 0.1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'HTTP/1.1 429 Busy\r\nContent-Length: 7\r\n\r\n"full!"', "HTTP 429: full!"),
        (CHUNKED + chunk(b"data: 1\n\n"), "cut off"),
        (HEAD + b"Content-Length: 100\r\n\r\ndata: 1\n\n", "cut off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (CHUNKED + b"zz\r\n", "does not speak HTTP"),
        (b"", "closed the connection without an answer"),
    ],
)
async def test_what_goes_wrong_is_told(answer: bytes, message: str) -> None:
    def misbehave(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(answer)
        writer.close()

    async with serving(misbehave) as (pool, _):
        with pytest.raises(RemoteError, match=message):
            await payloads(pool)


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    def answer(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(HEAD + b"\r\ndata: 1\n\n")
        writer.close()

    async with serving(answer) as (pool, _):
        assert await payloads(pool) == [b"1"]


@pytest.mark.parametrize("begin", [b"", CHUNKED + chunk(b"data: 1\n\n")])
async def test_a_silent_server_is_left(begin: bytes) -> None:
    async with serving(lambda writer, _: writer.write(begin), timeout_s=0.1) as (pool, _):
        with pytest.raises(RemoteError, match="was silent"):
            await payloads(pool)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:70000"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(RemoteError, match="not an address"):
        StreamPool(Target(url))
