"""Log-probabilities of completions and prompts as clients see them; a scripted engine behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine

from hearth.core.request import FinishReason, PromptLogprobs, TokenEvent
from hearth.serve.http import logprobs as module
from hearth.serve.model import ServedModel

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def completion(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The choices; those of a stream with texts and logprobs put together."""
    response = await client.post(COMPLETIONS, json=fields)
    assert response.status_code == 200, response.text
    if not fields.get("stream"):
        choices: list[dict[str, Any]] = response.json()["choices"]
        return choices
    merged: dict[int, dict[str, Any]] = {}
    for chunk in events(response):
        for choice in chunk["choices"]:
            known = merged.setdefault(choice["index"], {"text": "", "logprobs": None})
            known["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                known["logprobs"] = known["logprobs"] or {}
                known["logprobs"][name] = known["logprobs"].get(name, []) + values
    return [merged[index] for index in sorted(merged)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_tells_of_its_tokens(
    client: httpx.AsyncClient, model: ServedModel, stream: bool
) -> None:
    (choice,) = await completion(client, prompt="a", logprobs=2, stream=stream)
    found = choice["logprobs"]
    tokenizer = model.text.tokenizer
    assert "".join(found["tokens"]) == choice["text"] == "hello world"
    assert found["token_logprobs"] == [-0.5] * len(found["tokens"])
    best = {tokenizer.token_bytes(i).decode(): -float(i) for i in (1, 2)}
    for token, top in zip(found["tokens"], found["top_logprobs"], strict=True):
        assert top == {**best, token: -0.5}
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prompts", [["hello"], ["hello world", "hi 昨"]])
async def test_an_echoed_prompt_is_scored_for_every_choice(
    client: httpx.AsyncClient, model: ServedModel, stream: bool, n: int, prompts: Sequence[str]
) -> None:
    choices = await completion(
        client, prompt=list(prompts), echo=True, logprobs=1, n=n, stream=stream
    )
    assert len(choices) == n * len(prompts)
    for index, choice in enumerate(choices):
        prompt = prompts[index // n]
        tokens = model.text.tokenizer.encode(prompt, add_special_tokens=True)
        found = choice["logprobs"]
        assert choice["text"] == prompt + "hello world"
        count = len(tokens)
        expected = [None, *(-float(i) for i in range(1, count))]
        assert found["token_logprobs"][:count] == expected
        assert set(found["token_logprobs"][count:]) == {-0.5}
        assert found["top_logprobs"][0] is None
        assert len(set(map(len, found.values()))) == 1
        assert found["text_offset"][0] == 0
        assert found["text_offset"][count] == len(prompt)
        assert found["text_offset"] == sorted(found["text_offset"])


async def test_parts_of_a_character_are_different_tokens(
    client: httpx.AsyncClient, model: ServedModel
) -> None:
    text = "昨"
    (choice,) = await completion(client, prompt=text, echo=True, logprobs=0, max_tokens=0)
    pieces = model.text.tokenizer.encode(text)
    if len(pieces) > 1:
        raw = [model.text.tokenizer.token_bytes(piece) for piece in pieces]
        assert choice["logprobs"]["tokens"] == [
            "bytes:" + "".join(f"\\x{byte:02x}" for byte in part) for part in raw
        ]
        assert set(choice["logprobs"]["text_offset"]) == {0}


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_generated_for_a_prompt_that_is_only_scored(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    (choice,) = await completion(
        client, prompt="hello world", echo=True, logprobs=1, max_tokens=0, stream=stream
    )
    assert choice["text"] == "hello world"
    assert choice["logprobs"]["token_logprobs"][0] is None
    (request,) = engine.submitted
    assert (request.max_tokens, request.sampling.num_prompt_logprobs) == (0, 1)


async def test_a_prompt_of_one_token_has_one_place_without_a_probability(
    client: httpx.AsyncClient,
) -> None:
    (choice,) = await completion(
        client, prompt=[5], echo=True, logprobs=1, max_tokens=0, prompt_logprobs=1
    )
    assert choice["logprobs"]["token_logprobs"] == [None]
    assert choice["prompt_logprobs"] == [None]


@pytest.mark.parametrize("threshold", [0, 10**6])
async def test_prompt_logprobs_have_vllms_form(
    client: httpx.AsyncClient,
    model: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    threshold: int,
) -> None:
    monkeypatch.setattr(module, "THREAD_THRESHOLD_ENTRIES", threshold)
    chat = {"messages": [{"role": "user", "content": "hello"}], "prompt_logprobs": 2, "n": 2}
    answer = (await client.post(CHATS, json=chat)).json()
    text = {"prompt": [7, 2, 9], "prompt_logprobs": 2}
    choice = (await client.post(COMPLETIONS, json=text)).json()["choices"][0]
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]

    def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
        decoded = model.text.tokenizer.token_bytes(token).decode("utf-8", "replace")
        return {"logprob": logprob, "rank": rank, "decoded_token": decoded}

    assert choice["prompt_logprobs"] == [
        None,
        {"1": entry(1, -0.5, 1), "2": entry(2, -1.0, 1)},  # the given token's own entry stays
        {"1": entry(1, -0.5, 1), "2": entry(2, -1.5, 2), "9": entry(9, -2.0, 2)},
    ]


async def test_only_the_first_choice_asks_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await completion(client, prompt="hello world", echo=True, logprobs=1, n=3)
    asked = [request.sampling.num_prompt_logprobs for request in engine.submitted]
    assert asked == [1, -1, -1]


async def test_scores_that_do_not_follow_each_other_end_the_answer(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def doubled(request: Any) -> Any:
        chunk = PromptLogprobs(1, 0, b"\0\0\0\0", b"\0\0\0\0")
        for _ in range(2):
            yield TokenEvent(request.request_id, prompt_logprobs=chunk)
        yield TokenEvent(request.request_id, finish_reason=FinishReason.LENGTH)

    monkeypatch.setattr(engine, "_events", doubled)
    response = await client.post(COMPLETIONS, json={"prompt": [1, 2, 3], "prompt_logprobs": 0})
    assert response.status_code == 500
    assert "2 was next" in response.json()["error"]["message"]
