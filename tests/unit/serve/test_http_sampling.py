"""Sampling fields over HTTP: what reaches the engine, several choices, log-probabilities, stops."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine

from hearth.core.errors import OverloadedError

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_sampling_fields_reach_the_engine_without_a_warning(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    fields = {
        "frequency_penalty": 0.2,
        "presence_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": -100, "7": 2.5},
        "min_tokens": 3,
        "bad_words": ["hello"],
        "logprobs": True,
        "top_logprobs": 4,
        "ignore_eos": True,
    }
    response = await client.post(URL, json={"messages": HI, **fields})
    assert "warnings" not in response.json()
    request = engine.submitted[0]
    sampling = request.sampling
    assert request.stop_token_ids == frozenset()
    assert sampling.frequency_penalty == 0.2
    assert sampling.presence_penalty == -1
    assert sampling.repetition_penalty == 1.5
    assert dict(sampling.logit_bias) == {5: -100, 7: 2.5}
    assert sampling.min_tokens == 3
    assert sampling.num_logprobs == 4
    assert tuple(engine.tokenizer.encode("hello")) in sampling.bad_words


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_come_with_their_index_and_count_together(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    body = {"messages": HI, "n": 3, "stream": stream, "seed": 4}
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = await client.post(URL, json=body)
    num_tokens = len(engine.tokenizer.encode(engine.answer)) + 1
    if stream:
        chunks = events(response)
        usage = chunks[-1]["usage"]
        texts, order = [""] * 3, []
        reasons: list[list[str]] = [[], [], []]
        for chunk in chunks[:-1]:
            (choice,) = chunk["choices"]
            order.append(choice["index"])
            texts[choice["index"]] += choice["delta"].get("content", "")
            reasons[choice["index"]] += [choice["finish_reason"]] * bool(choice["finish_reason"])
        assert order != sorted(order), "one choice after the other"
        assert reasons == [["stop"]] * 3
    else:
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in choices]
        usage = response.json()["usage"]
    assert texts == [engine.answer] * 3
    assert usage["completion_tokens"] == 3 * num_tokens
    assert usage["prompt_tokens"] == len(engine.submitted[0].prompt)
    first = engine.submitted[0]
    assert [r.choice for r in engine.submitted] == [0, 1, 2]
    assert [r.follows for r in engine.submitted] == ["", first.request_id, first.request_id]
    assert {r.sampling.seed for r in engine.submitted} == {4}
    assert engine.cancelled == []


@pytest.mark.parametrize("stream", [True, False])
async def test_a_choice_that_fails_ends_all(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.fail_after = 1
    response = await client.post(URL, json={"messages": HI, "n": 2, "stream": stream})
    if stream:
        assert events(response)[-1]["error"]["code"] == "engine_dead"
    else:
        assert response.status_code == 503
    assert engine.num_running == 0


async def test_choices_that_are_not_all_accepted_leave_none_behind(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    accept = engine.submit

    def submit(request: Any) -> Any:
        if request.choice == 2:
            raise OverloadedError("the queue is full", hint="retry later")
        return accept(request)

    engine.submit = submit  # type: ignore[method-assign]  # a test double of a test double
    response = await client.post(URL, json={"messages": HI, "n": 3})
    assert response.status_code == 429
    assert len(engine.cancelled) == 2
    assert engine.num_running == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs_have_openais_shape(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.answer = "héllo 你"
    body = {"messages": HI, "logprobs": True, "top_logprobs": 2, "stream": stream}
    response = await client.post(URL, json=body)
    if stream:
        found = [c["choices"][0]["logprobs"] for c in events(response)]
        content = [place for logprobs in found if logprobs for place in logprobs["content"]]
    else:
        content = response.json()["choices"][0]["logprobs"]["content"]
    tokens = engine.tokenizer.encode(engine.answer)
    assert len(content) == len(tokens)
    assert b"".join(bytes(place["bytes"]) for place in content).decode() == engine.answer
    assert all(place["logprob"] == -0.5 for place in content)
    for place in content:
        assert [top["logprob"] for top in place["top_logprobs"]] == [-1, -2]
        assert all(set(top) == {"token", "logprob", "bytes"} for top in place["top_logprobs"])


async def test_without_logprobs_none_are_told(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"messages": HI, "logprobs": False})
    assert response.json()["choices"][0]["logprobs"] is None


async def test_the_stop_string_is_part_of_the_answer_where_asked(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = "one two three"
    body = {"messages": HI, "stop": " two", "include_stop_str_in_output": True}
    response = await client.post(URL, json=body)
    assert response.json()["choices"][0]["message"]["content"] == "one two"
    assert response.json()["choices"][0]["finish_reason"] == "stop"


async def test_stop_strings_are_not_searched_before_min_tokens(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = "one two one two"
    num_first = len(engine.tokenizer.encode("one two"))
    body = {"messages": HI, "stop": " two", "min_tokens": num_first}
    response = await client.post(URL, json=body)
    assert response.json()["choices"][0]["message"]["content"] == "one two one"
