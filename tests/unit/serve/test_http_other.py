"""/v1/models, /health, /docs and the OpenAPI document."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime

import httpx
import pytest
from tests.unit.serve.fake_engine import MAX_MODEL_LEN, FakeEngine, toy_model

from hearth import __version__
from hearth.core.errors import EngineDeadError
from hearth.core.events import EngineStats
from hearth.core.quality import QualitySummary, RoundingLoss
from hearth.serve.app import create_app
from hearth.serve.http import health


async def test_every_served_name_is_listed_and_shown(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["toy", "org/alias"]
    assert (await client.get("/v1/models/org/alias")).json() == body["data"][1]
    assert body["data"][1]["max_model_len"] == MAX_MODEL_LEN


async def test_what_quantization_cost_is_shown_where_it_was_measured(
    client: httpx.AsyncClient,
) -> None:
    assert "quality" not in (await client.get("/v1/models")).json()["data"][0]
    summary = QualitySummary(
        weights_key="k",
        scheme="int4 91 %, int8 9 %",
        method="rounded to nearest at load",
        reference="toy",
        perplexity=6.12,
        perplexity_change=0.004,
        kl=0.012,
        top1=0.971,
        text="builtin",
        text_sha256="ab",
        text_bytes=1,
        num_tokens=20_000,
        context=512,
        measured_at="2026-11-28T10:00:00Z",
        hearth_version="0.1.0",
        executor="avx2",
    )
    model = toy_model(quality=summary)
    app = create_app(FakeEngine(model.text.tokenizer), model)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as other:
        body = (await other.get("/v1/models/toy")).json()["quality"]
    assert body["perplexity_change"] == 0.004
    assert body["kl_divergence"] == 0.012
    assert body["same_best_token"] == 0.971
    assert body["scheme"] == "int4 91 %, int8 9 %"
    assert "weights_key" not in body
    assert body["rounding"] is None


async def test_what_rounding_lost_is_shown_where_nothing_was_measured() -> None:
    model = toy_model(rounding=RoundingLoss({"int4": 0.0091}, "layers.0.qkv", 0.012))
    transport = httpx.ASGITransport(create_app(FakeEngine(model.text.tokenizer), model))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = (await client.get("/v1/models/toy")).json()["quality"]
    worst = {"worst": "layers.0.qkv", "worst_error": 0.012}
    assert body.pop("rounding") == {"errors": {"int4": 0.0091}, **worst}
    assert set(body.values()) == {None}


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/org/alias", "/v1/models/other", "/health", "/docs"]
)
async def test_head_answers_like_get(client: httpx.AsyncClient, path: str) -> None:
    got, headed = await client.get(path), await client.head(path)
    assert headed.status_code == got.status_code
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert headed.headers["content-length"] == got.headers["content-length"]


async def test_health_is_up_with_the_engines_counts(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    body = response.json()
    assert response.status_code == 200
    assert (body["status"], body["model"], body["version"]) == ("UP", "toy", __version__)
    assert (body["running"], body["waiting"]) == (0, 3)
    age = datetime.now(UTC) - datetime.fromisoformat(body["timestamp"])
    assert abs(age.total_seconds()) < 60


@pytest.mark.parametrize("is_alive", [True, False])
async def test_health_is_down_when_the_engine_is_gone(
    client: httpx.AsyncClient, engine: FakeEngine, is_alive: bool
) -> None:
    engine.is_alive = is_alive
    engine.stats_error = EngineDeadError("gone")
    response = await client.get("/health")
    assert response.status_code == 503
    assert response.json()["status"] == "DOWN"


async def test_health_does_not_wait_for_a_long_step(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> EngineStats:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(engine, "stats", never)
    monkeypatch.setattr(health, "STATS_TIMEOUT_S", 0.01)
    body = (await client.get("/health")).json()
    assert body["status"] == "UP"
    assert body["waiting"] is None


async def test_the_documentation_needs_no_network(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert re.findall(r"https?://[^\s\"']+", page) == []
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(links) == 3
    for link in links:
        response = await client.get(link)
        assert response.status_code == 200
        assert len(response.content) > 500


async def test_the_openapi_document_is_complete(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
        "/version",
        "/v1/models",
        "/v1/models/{name}",
        "/health",
    }
    schemas = document["components"]["schemas"]
    text = str(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in schemas
    assert "temperature" in schemas["ChatCompletionRequest"]["properties"]
