"""POST /v1/chat/completions: the shapes of both answers, warnings, and clients that go away."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine, client_for, toy_model
from tests.unit.serve.leaving_client import LeavingClient

from hearth.core.errors import EngineDeadError, OverloadedError
from hearth.serve.app import create_app
from hearth.serve.model import ServedModel

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_whole_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.post(URL, json={"model": "toy", "messages": HI})
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "toy"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello world"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "warnings" not in body


async def test_a_streamed_answer(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.answer = "你好 🙂"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post(URL, json={"messages": HI, **options})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "你好" in response.content.decode()  # UTF-8, not \\u escapes
    chunks = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    contents = [c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]]
    assert "".join(contents) == engine.answer
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert len({c["id"] for c in chunks}) == 1
    assert all(c["object"] == "chat.completion.chunk" for c in chunks)


async def test_usage_is_streamed_only_when_asked(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"messages": HI, "stream": True})
    assert all("usage" not in chunk for chunk in events(response))


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_not_applied_is_told_in_the_answer_and_the_log(
    client: httpx.AsyncClient, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {
        "frequency_penalty": 0.2,
        "logprobs": True,
        "echo": True,
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "user": "me",
        "n": 1,
        "guided_json": None,
        "tempreature": 1,
    }
    response = await client.post(URL, json={"messages": HI, "stream": stream, **fields})
    body = events(response)[0] if stream else response.json()
    found = {warning["param"]: warning["code"] for warning in body["warnings"]}
    assert found == {
        "echo": "ignored_field",
        "tools": "ignored_field",
        "response_format": "ignored_field",
        "tempreature": "unknown_field",
        "max_tokens": "overridden_field",
    }
    logged = [record.getMessage() for record in caplog.records]
    assert all(any(param in line for line in logged) for param in found)


@pytest.mark.parametrize(
    "content",
    ["Hi", [{"type": "text", "text": "Hi"}], [{"type": "text", "text": "H"}] * 2],
)
async def test_content_may_be_a_string_or_a_list(
    client: httpx.AsyncClient, engine: FakeEngine, content: object
) -> None:
    history = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": content},
    ]
    response = await client.post(URL, json={"messages": history})
    assert response.status_code == 200, response.text


async def test_stop_and_limits_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = "one two three"
    fields = {"stop": " two", "max_completion_tokens": 50, "stop_token_ids": [3], "seed": 2**64 - 1}
    response = await client.post(URL, json={"messages": HI, **fields})
    assert response.json()["choices"][0]["message"]["content"] == "one"
    request = engine.submitted[0]
    assert request.max_tokens == 50
    assert 3 in request.stop_token_ids
    assert request.sampling.seed == 2**64 - 1


async def test_overload_and_death_have_their_status(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.submit_error = OverloadedError("the queue is full", hint="retry later")
    response = await client.post(URL, json={"messages": HI})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"
    engine.submit_error = EngineDeadError("gone")
    response = await client.post(URL, json={"messages": HI, "stream": True})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"


async def test_death_in_the_middle_ends_a_stream_with_an_error_event(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fail_after = 1
    chunks = events(await client.post(URL, json={"messages": HI, "stream": True}))
    assert chunks[-1]["error"]["code"] == "engine_dead"
    assert all(c.get("choices", [{}])[0].get("finish_reason") is None for c in chunks[:-1])
    response = await client.post(URL, json={"messages": HI})
    assert response.status_code == 503


async def test_without_a_template_the_server_lives_and_the_request_is_told() -> None:
    model = toy_model(template=None)
    engine = FakeEngine(model.text.tokenizer)
    async with client_for(engine, model) as client:
        response = await client.post(URL, json={"messages": HI})
        assert response.status_code == 400
        assert "no chat template" in response.json()["error"]["message"]
        assert (await client.get("/health")).json()["status"] == "UP"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_its_sequence(
    engine: FakeEngine, model: ServedModel, stream: bool
) -> None:
    engine.stall_after = 1
    leaving = LeavingClient(create_app(engine, model), {"messages": HI, "stream": stream})
    await leaving.submitted(engine)
    await leaving.leave()
    assert engine.cancelled == [engine.submitted[0].request_id]
    assert engine.num_running == 0


async def test_unknown_fields_are_counted_when_many_and_cannot_forge_log_lines(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a\n2026 ERROR forged", "\x1b[31m", "x" * 500, *(f"field_{i}" for i in range(1000))]
    fields = {"metadata": {"\x9b2J": "\u2028\x7f"}, **dict.fromkeys(names, 1)}
    response = await client.post(URL, json={"messages": HI, **fields})
    warnings = response.json()["warnings"]
    assert len(warnings) == 22
    assert warnings[-1]["message"] == "983 more unknown fields were ignored"
    lines = [record.getMessage() for record in caplog.records if record.name == "hearth.serve"]
    assert len(lines) == 22
    assert all(line.isprintable() and len(line) < 300 for line in lines)
