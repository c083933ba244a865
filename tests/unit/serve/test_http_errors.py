"""Whatever a client sends, it gets an answer in OpenAI's form that says what to change."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine, client_for, toy_model

from hearth.serve.model import ServedModel

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -1}, "temperature", "from 0 to 2"),
    ({"temperature": 2.5}, "temperature", "from 0 to 2"),
    ({"temperature": "0.5"}, "temperature", "from 0 to 2"),
    ({"temperature": True}, "temperature", "from 0 to 2"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_k": -2}, "top_k", "-1 or 0"),
    ({"top_k": 1.5}, "top_k", "integer"),
    ({"min_p": 1.1}, "min_p", "from 0 to 1"),
    ({"max_tokens": 0}, "max_tokens", "1 or more"),
    ({"max_tokens": -5}, "max_tokens", "1 or more"),
    ({"max_tokens": "5"}, "max_tokens", "1 or more"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "1 or more"),
    ({"seed": -1}, "seed", "integer from 0"),
    ({"seed": 2**64}, "seed", "integer from 0"),
    ({"stop": ""}, "stop", "a string or a list"),
    ({"stop": ["a", ""]}, "stop.1", "a string or a list"),
    ({"stop": 5}, "stop", "a string or a list"),
    ({"stop": ["x"] * 17}, "stop", "up to 16"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0", "0 or more"),
    ({"stop_token_ids": [10**9]}, "stop_token_ids", "permitted"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"n": 0}, "n", "1 to 128"),
    ({"n": 129}, "n", "1 to 128"),
    ({"best_of": 3}, "best_of", "several"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "token id"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "-100 to 100"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "outside the vocabulary"),
    ({"min_tokens": -1}, "min_tokens", "0 or more"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "0 to 8"),
    ({"bad_words": [""]}, "bad_words.0", "1 to 1024"),
    ({"tool_choice": "required"}, "tool_choice", '"none", "auto"'),
    ({"modalities": ["text", "audio"]}, "modalities", "text"),
    ({"frequency_penalty": 3}, "frequency_penalty", "-2 to 2"),
    ({"messages": []}, "messages", "one or more"),
    ({"messages": "Hi"}, "messages", "one or more"),
    ({"messages": [{"content": "Hi"}]}, "messages.0.role", "system, developer, user"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role", "assistant or tool"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "a string or a list"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a string or a list"),
    ({"messages": [*HI, "Hi"]}, "messages.1", "permitted"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages.0.content.0.text",
        "a string",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0",
        "this model takes no images",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
        "messages.0.content.0.type",
        "hologram",
    ),
]


@pytest.mark.parametrize(("fields", "param", "text"), REFUSED, ids=lambda v: str(v)[:40])
async def test_a_refused_field_is_named_with_what_is_permitted(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, text: str
) -> None:
    error = error_of(await client.post(URL, json={"messages": HI, **fields}))
    assert error["param"] == param
    assert error["message"].startswith(param.partition(".")[0])
    assert text in error["message"]
    assert error["type"] == "invalid_request_error"
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'messages': 1}", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{}", "messages is missing"),
        (b'{"messages": "\xff"}', "not valid UTF-8: byte 0xff at position 14"),
        ('{"messages": "é"}'.encode("latin-1"), "not valid UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"messages": [], "temperature": NaN}', "messages"),
    ],
    ids=range(11),
)
async def test_a_broken_body_is_refused(client: httpx.AsyncClient, raw: bytes, text: str) -> None:
    error = error_of(await client.post(URL, content=raw))
    assert text in error["message"]
    assert error["code"] == "invalid_body"
    assert len(error["message"]) < 1000


async def test_many_errors_are_told_together_and_large_values_not_repeated(
    client: httpx.AsyncClient,
) -> None:
    body = {"messages": "x" * 100_000, "temperature": "y" * 100_000, "top_p": 7}
    error = error_of(await client.post(URL, json=body))
    assert all(name in error["message"] for name in ("messages", "temperature", "top_p"))
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_beyond_the_limit_is_refused(
    engine: FakeEngine, model: ServedModel, chunked: bool
) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    async with client_for(engine, model, max_body_bytes=10_000) as client:
        content = chunks() if chunked else b"x" * 100_000
        error = error_of(await client.post(URL, content=content), 413)
        assert error["code"] == "body_too_large"
        assert "9.77 KiB" in error["message"]


async def test_a_megabyte_prompt_is_answered_with_both_numbers(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "你好 world " * 100_000}]
    error = error_of(await client.post(URL, json={"messages": messages}))
    assert error["code"] == "context_length_exceeded"
    assert "400 tokens" in error["message"]


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    error = error_of(await client.get("/v1/nothing"), 404)
    assert error["code"] == "not_found"
    assert "/v1/nothing" in error["message"]
    response = await client.get(URL)
    error = error_of(response, 405)
    assert "permitted: POST" in error["message"]
    assert response.headers["allow"] == "POST"


async def test_a_model_that_is_not_served(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post(URL, json={"messages": HI, "model": "gpt-4"}), 404)
    assert error["code"] == "model_not_found"
    assert "'toy'" in error["message"]
    error_of(await client.get("/v1/models/gpt-4"), 404)


async def test_a_template_that_refuses_is_quoted(engine: FakeEngine) -> None:
    from tests.unit.serve.fake_engine import toy_model
    from tests.unit.text import templates

    async with client_for(engine, toy_model(templates.MISTRAL)) as client:
        messages = [{"role": "system", "content": "x"}]
        error = error_of(await client.post(URL, json={"messages": messages}))
        assert "Conversation roles must alternate" in error["message"]


async def test_the_unexpected_is_a_500_with_its_trace_in_the_log(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.submit_error = ZeroDivisionError("secret detail")
    error = error_of(await client.post(URL, json={"messages": HI}), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [1] * 50_000}, "messages.0"),
        ({"messages": HI * 10_001}, "messages"),
        ({"messages": [{"role": "user", "content": [1] * 50_000}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": HI, "tool_calls": [1] * 50_000}]}, None),
        ({"stop": [""] * 50_000}, "stop.0"),
        ({"stop_token_ids": ["x"] * 50_000}, "stop_token_ids.0"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"logit_bias": {str(i): "x" for i in range(50_000)}}, "logit_bias"),
    ],
)
async def test_a_body_of_wrong_entries_is_left_at_the_first(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str | None
) -> None:
    error = error_of(await client.post(URL, json={"messages": HI, **fields}))
    assert param is None or error["param"] == param
    assert re.search(r"and \d+ more", error["message"]) is None
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("modalities", [5, {"audio": 1}, "audio", [5]])
async def test_modalities_of_any_type_are_refused_and_no_500(
    client: httpx.AsyncClient, modalities: Any
) -> None:
    error = error_of(await client.post(URL, json={"messages": HI, "modalities": modalities}))
    assert error["param"] == "modalities"


@pytest.mark.parametrize("arguments", ["[" * 100_000, '"\\ud800"', "9" * 5000, "{"])
async def test_tool_arguments_that_are_no_json_reach_the_template_as_text(
    engine: FakeEngine, arguments: str
) -> None:
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    async with client_for(engine, toy_model(template, max_model_len=10**6)) as client:
        response = await client.post(URL, json={"messages": messages})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_is_refused_is_read_to_its_end(
    engine: FakeEngine, model: ServedModel, chunked: bool
) -> None:
    num_sent = 0

    async def chunks() -> Any:
        nonlocal num_sent
        for _ in range(100):
            yield b"x" * 1000
            num_sent += 1000

    headers = {} if chunked else {"Content-Length": "100000"}
    async with client_for(engine, model, max_body_bytes=10_000) as client:
        error_of(await client.post(URL, content=chunks(), headers=headers), 413)
    # Closing the connection on unread data would reset it, and the client would not see why.
    assert num_sent == 100_000


@pytest.mark.parametrize(
    "fields",
    [{"model": "x" * 100_000}, {"logit_bias": {"x" * 100_000: 1}}, {"tool_choice": "x" * 100_000}],
)
async def test_a_refusal_does_not_send_megabytes_back(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    response = await client.post(URL, json={"messages": HI, **fields})
    assert response.status_code in (400, 404)
    assert len(response.content) < 5000


async def test_the_path_of_a_refused_field_is_short(client: httpx.AsyncClient) -> None:
    fields = {"logit_bias": {"x" * 100_000: "y"}}
    error = error_of(await client.post(URL, json={"messages": HI, **fields}))
    assert len(error["message"]) + len(error["param"]) < 5000
    assert error["message"].endswith("from -100 to 100)")


async def test_a_compressed_body_is_named_as_one(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding 'gzip'" in error_of(response)["message"]


async def test_a_template_variable_with_a_field_of_its_own_is_told(
    client: httpx.AsyncClient,
) -> None:
    body = {"messages": HI, "chat_template_kwargs": {"messages": []}}
    found = (await client.post(URL, json=body)).json()["warnings"]
    assert [(w["code"], w["param"]) for w in found] == [
        ("overridden_field", "chat_template_kwargs.messages")
    ]
