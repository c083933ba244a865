"""POST /v1/completions: every form of a prompt, echo, several prompts, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import MAX_MODEL_LEN, FakeEngine, toy_model

from hearth.core.errors import OverloadedError
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.completion_service import CompletionCall, CompletionService
from hearth.serve.sampling import bad_word_tokens

URL = "/v1/completions"


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def encode(text: str) -> list[int]:
    return toy_model().text.tokenizer.encode(text)


async def test_a_whole_answer(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"model": "toy", "prompt": "Hi"})
    body = response.json()
    assert response.status_code == 200, body
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["prompt_tokens"] == len(encode("Hi"))
    assert "warnings" not in body


@pytest.mark.parametrize(
    ("prompt", "num_choices"),
    [
        ("Hi", 1),
        (["Hi"], 1),
        (["Hi", "you", "there"], 3),
        (encode("Hi"), 1),
        ([encode("Hi"), encode("you")], 2),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_every_form_of_a_prompt_and_one_choice_each(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any, num_choices: int, stream: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    fields = {"prompt": prompt, "echo": True, "stream": stream, **options}
    response = await client.post(URL, json=fields)
    texts = dict.fromkeys(range(num_choices), "")
    reasons = dict.fromkeys(range(num_choices))
    bodies = events(response) if stream else [response.json()]
    for body in bodies:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    asked = ["Hi", "you", "there"][:num_choices]
    assert list(texts.values()) == [f"{text}hello world" for text in asked]
    assert set(reasons.values()) == {"stop"}
    assert [request.prompt for request in engine.submitted] == [tuple(encode(t)) for t in asked]
    assert len({request.request_id for request in engine.submitted}) == num_choices
    assert bodies[-1]["usage"]["prompt_tokens"] == sum(len(encode(t)) for t in asked)
    assert engine.running == set()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [["Hi"], ["Hi", "you"]])
async def test_several_choices_of_each_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, prompts: list[str], stream: bool
) -> None:
    fields = {"prompt": prompts, "n": 2, "echo": True, "stream": stream}
    response = await client.post(URL, json=fields)
    texts = dict.fromkeys(range(2 * len(prompts)), "")
    for body in events(response) if stream else [response.json()]:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == [f"{p}hello world" for p in prompts for _ in range(2)]
    assert [request.choice for request in engine.submitted] == [0, 1] * len(prompts)
    if not stream:
        usage = response.json()["usage"]
        assert usage["prompt_tokens"] == sum(len(encode(prompt)) for prompt in prompts)
    assert engine.running == set()


async def test_sampling_is_that_of_chats(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = {
        "prompt": "a",
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": -3},
        "min_tokens": 2,
        "bad_words": ["x"],
    }
    body = (await client.post(URL, json=fields)).json()
    assert "warnings" not in body
    sampling = engine.submitted[0].sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert (sampling.repetition_penalty, sampling.min_tokens) == (1.5, 2)
    assert sampling.logit_bias == ((5, -3.0),)
    assert sampling.bad_words
    assert sampling.num_logprobs == -1


async def test_the_default_length_is_openais(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(URL, json={"prompt": "Hi"})
    await client.post(URL, json={"prompt": [5] * (MAX_MODEL_LEN - 3)})
    await client.post(URL, json={"prompt": "Hi", "max_tokens": 2, "priority": -4, "seed": 9})
    assert [request.max_tokens for request in engine.submitted] == [16, 3, 2]
    assert [request.priority for request in engine.submitted] == [0, 0, -4]
    assert engine.submitted[2].sampling.seed == 9


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": 5}, "prompt", "a string, a list of strings"),
        ({"prompt": ["a", 5]}, "prompt.1", "string"),
        ({"prompt": [True]}, "prompt.0", "string"),
        ({"prompt": [10**6]}, "prompt", "outside the vocabulary"),
        ({"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "infilling"),
        ({"prompt": "a", "n": 0}, "n", "1 to 128"),
        ({"prompt": "a", "best_of": 2}, "best_of", "more answers than are sent"),
        ({"prompt": "a", "min_tokens": 17}, "min_tokens", "shorten the prompt"),
        ({"prompt": "a", "logit_bias": {"1000000": 1}}, "logit_bias", "outside the vocabulary"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "0 or more"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "0 to 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "0 to 20"),
        ({"prompt": "a", "prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "echo with"),
        ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "1 or more"),
        ({"prompt": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "1 or more"),
        ({"prompt": [5] * (MAX_MODEL_LEN + 1), "max_tokens": 0}, "prompt", "by 1 tokens"),
        ({"prompt": "a", "max_tokens": 10**5}, "max_tokens", "context"),
        ({"prompt": [5] * MAX_MODEL_LEN}, "prompt", "shorten the prompt"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "stream: true"),
        ({"prompt": "a", "priority": 2**40}, "priority", "lower goes first"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, text: str
) -> None:
    response = await client.post(URL, json=fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert text in error["message"]
    assert engine.submitted == []


async def test_what_is_not_applied_is_told(client: httpx.AsyncClient) -> None:
    fields = {"prompt": "a", "tools": [1], "suffix": "", "echo": False, "max_completion_tokens": 3}
    body = (await client.post(URL, json=fields)).json()
    assert [notice["param"] for notice in body["warnings"]] == ["tools", "max_completion_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_one_failing_prompt_ends_all_with_one_error(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.fail_after = 1
    response = await client.post(URL, json={"prompt": ["a", "b"], "stream": stream})
    error = events(response)[-1]["error"] if stream else response.json()["error"]
    assert error["code"] == "engine_dead"
    assert engine.running == set()


async def test_all_prompts_are_queued_or_none(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine.submit

    def submit(request: Any) -> Any:
        if len(engine.submitted) == 2:
            raise OverloadedError("full")
        return plain(request)

    monkeypatch.setattr(engine, "submit", submit)
    response = await client.post(URL, json={"prompt": ["a", "b", "c"]})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert engine.running == set()
    assert len(engine.cancelled) == 2


async def test_bad_words_are_encoded_once_for_all_prompts(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def counting(tokenizer: Tokenizer, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        calls.append(words)
        return bad_word_tokens(tokenizer, words)

    monkeypatch.setattr("hearth.serve.pipeline.bad_word_tokens", counting)
    response = await client.post(URL, json={"prompt": ["Hi", "you"], "bad_words": ["world"]})
    assert response.status_code == 200
    assert calls == [("world",)]


async def test_a_bad_word_of_spaces_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"prompt": "Hi", "bad_words": ["x", "  "]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "bad_words"


async def test_other_requests_come_between_the_prompts_of_one(engine: FakeEngine) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    service = CompletionService(engine, toy_model())
    counter = asyncio.ensure_future(count())
    await service.prepare(CompletionCall(prompts=("Hi",) * 50))
    counter.cancel()
    assert turns >= 49


async def test_an_answer_other_than_text_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"prompt": "Hi", "modalities": ["audio"]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "modalities"
