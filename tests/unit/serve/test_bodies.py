"""Large bodies: read within a common bound, validated beside the event loop, to the same result."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Request
from tests.unit.serve.fake_engine import FakeEngine

from hearth.core.errors import EngineError, OverloadedError
from hearth.serve.http import body as module
from hearth.serve.http.body import Bodies
from hearth.serve.http.body_worker import BodyWorker
from hearth.serve.http.completion_schemas import CompletionRequest
from hearth.serve.http.errors import BodyError, validated

URL = "/v1/completions"


def request_of(chunks: AsyncIterator[bytes]) -> Request:
    """A request whose body comes piece by piece."""

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def pieces(*parts: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for part in parts[:-1]:
        yield part
    if gate is not None:
        await gate.wait()
    yield parts[-1]


async def outcome_of(work: Awaitable[CompletionRequest]) -> object:
    """What was found, or how it was refused."""
    try:
        return await work
    except BodyError as error:
        return str(error), error.param


@pytest.fixture(scope="module")
def worker() -> Iterator[BodyWorker]:
    found = BodyWorker()
    yield found
    found.close()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": [1, 2, 3], "temperature": 0.5, "unheard_of": 1}',
        b'{"prompt": [1, "a"]}',
        b'{"prompt": 1, "top_p": 7}',
        b'{"prompt": [1,',
        b'{"prompt": "\xff"}',
        b"[]",
    ],
)
async def test_the_other_process_says_what_this_one_would(raw: bytes, worker: BodyWorker) -> None:
    found, expected = [
        await outcome_of(asyncio.to_thread(validated, raw, CompletionRequest)),
        await outcome_of(worker.validate(raw, CompletionRequest)),
    ]
    assert found == expected


async def test_the_loop_goes_on_while_millions_of_values_are_validated(worker: BodyWorker) -> None:
    raw = b'{"prompt": "a", "unknown": [' + b",".join([b"[]"] * 400_000) + b"]}"
    await worker.validate(b'{"prompt": "a"}', CompletionRequest)  # it runs
    longest = 0.0
    started = last = time.perf_counter()
    work = asyncio.ensure_future(worker.validate(raw, CompletionRequest))
    while not work.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await work).model_extra == {"unknown": "a large value"}
    assert longest < (last - started) / 3


async def test_a_child_that_dies_costs_one_request(worker: BodyWorker) -> None:
    await worker.validate(b'{"prompt": "a"}', CompletionRequest)
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGSTOP)
    lost = asyncio.ensure_future(worker.validate(b'{"prompt": "a"}', CompletionRequest))
    await asyncio.sleep(0.05)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="large bodies"):
        await lost
    assert (await worker.validate(b'{"prompt": "b"}', CompletionRequest)).prompt == "b"


async def test_bodies_have_a_common_bound_and_give_their_share_back() -> None:
    bodies = Bodies(100, 150)
    gate = asyncio.Event()
    raw = b'{"prompt": "' + b"a" * 76 + b'"}'
    slow = asyncio.ensure_future(
        bodies.read(request_of(pieces(raw[:60], raw[60:], gate=gate)), CompletionRequest)
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    await bodies.read(request_of(pieces(raw)), CompletionRequest)
    with pytest.raises(OverloadedError, match="permitted are 150 B"):
        await bodies.read(request_of(pieces(raw, b" " * 5)), CompletionRequest)
    gate.set()
    assert (await slow).prompt == "a" * 76
    await bodies.read(request_of(pieces(raw, b" " * 5)), CompletionRequest)
    assert bodies._num_bytes == 0


async def test_the_endpoint_answers_bodies_of_many_values(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_VALUES", 3)
    fields = {"prompt": [1, 2, 3, 4], "x": 1, "max_tokens": 2}
    answer = (await client.post(URL, json=fields)).json()
    assert engine.submitted[0].prompt == (1, 2, 3, 4)
    assert [warning["param"] for warning in answer["warnings"]] == ["x"]
    refused = await client.post(URL, json={**fields, "top_p": 2})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "top_p"
