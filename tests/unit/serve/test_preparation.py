"""Requests that are still being prepared, their images above all: bounded, and ended in time."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image
from tests.unit.images.samples import png
from tests.unit.serve.fake_engine import client_for
from tests.unit.serve.image_model import LookingEngine, image_model, image_part, text_part, user
from tests.unit.serve.leaving_client import LeavingClient
from tests.unit.serve.test_http_errors import error_of

from hearth.core.config import EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.errors import OverloadedError
from hearth.engine.client import EngineClient
from hearth.engine.images import decode
from hearth.serve.app import create_app
from hearth.serve.http.deadlines import TIMEOUT_HEADER
from hearth.serve.http.server import HttpServer, ServerOptions
from hearth.serve.listen import bind_socket
from hearth.serve.model import ServedModel

CHATS, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
CHAT: dict[str, Any] = {"messages": [user(image_part(png()), text_part("x"))]}


class Gate:
    """Holds what decodes images up; `opened` lets it go on, `reached` says that it came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.passed = threading.Event(), threading.Event()
        self.reached = asyncio.Event()
        loop, plain = asyncio.get_running_loop(), decode.decode_rgb

        def watched(header: decode.ImageHeader) -> Image.Image:
            loop.call_soon_threadsafe(self.reached.set)
            assert self.opened.wait(60)
            try:
                return plain(header)
            finally:
                self.passed.set()

        monkeypatch.setattr(decode, "decode_rgb", watched)


@pytest.fixture
async def gate(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.opened.set()
    assert await asyncio.to_thread(found.passed.wait, 30)


@pytest.fixture
def model() -> ServedModel:
    return image_model()


@pytest.fixture
def engine(model: ServedModel) -> LookingEngine:
    return LookingEngine(model)


@pytest.fixture
async def client(engine: LookingEngine, model: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(engine, model) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_the_loading_of_its_images(
    engine: LookingEngine, model: ServedModel, gate: Gate, stream: bool
) -> None:
    leaving = LeavingClient(create_app(engine, model), {**CHAT, "stream": stream})
    async with asyncio.timeout(30):
        await gate.reached.wait()
    await leaving.leave()
    assert engine.submitted == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_whose_time_is_over_while_its_images_load_is_a_504(
    client: httpx.AsyncClient, engine: LookingEngine, gate: Gate, stream: bool
) -> None:
    async with asyncio.timeout(30):
        response = await client.post(CHATS, json={**CHAT, "timeout": 0.05, "stream": stream})
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    body = response.json()
    assert body["error"]["code"] == "deadline_exceeded"
    assert body["usage"]["total_tokens"] == 0
    assert engine.submitted == []


async def test_counting_tokens_has_a_time_too(
    engine: LookingEngine, model: ServedModel, gate: Gate
) -> None:
    transport = httpx.ASGITransport(create_app(engine, model, request_timeout_s=0.05))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://test") as bounded,
        client_for(engine, model) as free,
        asyncio.timeout(30),
    ):
        named = await free.post(TOKENIZE, json=CHAT, headers={TIMEOUT_HEADER: "0.05"})
        for response in (named, await bounded.post(TOKENIZE, json=CHAT)):
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(("path", "fields"), [(CHATS, {"n": 2}), (TOKENIZE, {})])
async def test_requests_that_load_images_have_places_in_the_queue(
    client: httpx.AsyncClient,
    engine: LookingEngine,
    gate: Gate,
    path: str,
    fields: dict[str, int],
) -> None:
    engine.max_requests = fields.get("n", 1)
    loading = asyncio.ensure_future(client.post(path, json={**CHAT, **fields}))
    async with asyncio.timeout(30):
        await gate.reached.wait()
        for other in (CHATS, TOKENIZE):
            assert error_of(await client.post(other, json=CHAT), 429)["code"] == "overloaded"
        prompt = {"prompt": "x", "max_tokens": 1}
        error_of(await client.post(COMPLETIONS, json=prompt), 429)
        assert (await client.post(TOKENIZE, json=prompt)).status_code == 200  # needs no place
        gate.opened.set()
        assert (await loading).status_code == 200
        assert (await client.post(COMPLETIONS, json=prompt)).status_code == 200


def test_the_engine_counts_those_that_come_before() -> None:
    config = EngineConfig(
        ModelConfig("none"), scheduler=SchedulerConfig(max_num_seqs=2, max_queued_requests=3)
    )
    process: Any = SimpleNamespace(config=config)
    client = EngineClient(process)
    client.check_room(4)
    with pytest.raises(OverloadedError, match="5 requests are running or queued"):
        client.check_room(5)


async def test_a_server_that_is_told_to_end_waits_for_images_that_are_being_loaded(
    engine: LookingEngine, model: ServedModel, gate: Gate
) -> None:
    with bind_socket("127.0.0.1", 0) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = HttpServer(create_app(engine, model), engine, sock, ServerOptions(grace_s=30.0))
        serving = asyncio.ensure_future(server.run())
        async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.timeout(60):
            loading = asyncio.ensure_future(client.post(CHATS, json=CHAT))
            await gate.reached.wait()
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)  # so long as the server may take to look
            assert engine.is_alive
            gate.opened.set()
            assert (await loading).status_code == 200
            assert await serving == 0
    assert not engine.is_alive
