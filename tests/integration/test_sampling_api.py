"""Sampling parameters through the official client, on the built-in model."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest
from tests.integration.server import Server

MODEL = "hearth-demo"
EXTRA = (
    "repetition_penalty",
    "bad_words",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
)
LONG = "What is hearth? " * 12


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


def ask(client: openai.OpenAI, text: str = "What is hearth?", **fields: Any) -> Any:
    extra = {k: fields.pop(k) for k in list(fields) if k in EXTRA}
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        extra_body=extra,
        **{"temperature": 0, "max_tokens": 24, **fields},
    )


EXTRA = (
    "repetition_penalty",
    "bad_words",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
)


def prefix_hits(server: Server) -> int:
    hits: int = httpx.get(f"{server.url}/health").json()["engine"]["prefix_hit_tokens"]
    return hits


def test_penalties_and_biases_change_a_greedy_answer(client: openai.OpenAI) -> None:
    plain = ask(client, ignore_eos=True, max_tokens=60).choices[0]
    places = ask(client, logprobs=True).choices[0].logprobs.content
    assert "".join(place.token for place in places).strip()
    for fields in (
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 3.0},
        {"bad_words": [places[0].token.strip()]},
    ):
        other = ask(client, ignore_eos=True, max_tokens=60, **fields).choices[0]
        assert other.message.content != plain.message.content, fields
    assert ask(client, bad_words=["hearth"]).choices[0].message.content.count("hearth") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_greedy_tokens(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, logprobs=True, top_logprobs=5, stream=stream, repetition_penalty=1.0)
    if stream:
        choices = [chunk.choices[0] for chunk in answer if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        content = [p for choice in choices if choice.logprobs for p in choice.logprobs.content]
    else:
        text = answer.choices[0].message.content
        content = answer.choices[0].logprobs.content
    assert b"".join(bytes(place.bytes) for place in content).decode() == text
    for place in content:
        values = [top.logprob for top in place.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 5
        assert place.logprob == values[0]
        assert math.fsum(map(math.exp, values)) <= 1 + 1e-5


def test_choices_share_the_blocks_of_their_prompt(client: openai.OpenAI, server: Server) -> None:
    before = prefix_hits(server)
    fields: dict[str, Any] = {"n": 4, "temperature": 2.0, "seed": 11, "logit_bias": {"5": -100}}
    answer = ask(client, LONG, **fields)
    shared = answer.usage.prompt_tokens // 32 * 32
    assert shared >= 32
    assert prefix_hits(server) - before >= 3 * min(shared, answer.usage.prompt_tokens - 32)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    streamed = [""] * 4
    for chunk in ask(client, LONG, stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_min_tokens_and_included_stops(client: openai.OpenAI) -> None:
    short = ask(client, max_tokens=200)
    assert short.choices[0].finish_reason == "stop"
    least = short.usage.completion_tokens + 10
    longer = ask(client, max_tokens=200, min_tokens=least)
    assert longer.usage.completion_tokens >= least
    word = short.choices[0].message.content.split()[2]
    cut = ask(client, stop=word, include_stop_str_in_output=True).choices[0].message.content
    assert cut.endswith(word)
    assert cut == short.choices[0].message.content[: len(cut)]
