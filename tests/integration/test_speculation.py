"""A server that speculates answers as one that does not, to the byte, and says how often it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.integration.server import SMALL, Server

REPEATS = "The kettle sings in the kitchen, and the stove is warm. " * 8
FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "seed": 5},
    {"frequency_penalty": 0.1, "bad_words": ["stove", "the kitchen"], "min_tokens": 20},
    {"stop": ["kitchen, and"], "include_stop_str_in_output": True},
    {"logprobs": 2, "repetition_penalty": 1.05},
    {"n": 2, "temperature": 1.0, "seed": 8},
)


@pytest.fixture(scope="module")
def plain(built_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("plain")
    with Server(directory, *SMALL, "--speculative", "off") as found:
        yield found
        assert found.stop() == 0
        assert "speculation: off (--speculative)" in found.stdout


def answer(server: Server, **fields: Any) -> dict[str, Any]:
    """Choices and usage of a completion, without what differs from call to call."""
    body = {"prompt": REPEATS, "max_tokens": 90, "temperature": 0, "ignore_eos": True, **fields}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    usage = reply["usage"]
    return {"choices": reply["choices"], "tokens": usage["completion_tokens"]}


def drafted(server: Server) -> dict[str, int]:
    counts = httpx.get(f"{server.url}/health", timeout=60).json()["engine"]
    return {name: counts[name] for name in ("drafts", "draft_tokens", "accepted_tokens")}


def test_every_answer_is_the_same_and_the_counts_tell_of_drafts(
    server: Server, plain: Server
) -> None:
    before = after = drafted(server)
    for _ in range(10):  # a busy machine can make drafts look dear for a while
        for fields in FIELDS:
            assert answer(server, **fields) == answer(plain, **fields), fields
        after = drafted(server)
        if after["accepted_tokens"] > before["accepted_tokens"]:
            break
    assert after["accepted_tokens"] > before["accepted_tokens"]
    assert after["draft_tokens"] >= after["accepted_tokens"]
    assert drafted(plain) == {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    assert "speculation: ngram" in server.stdout


def test_a_stream_has_the_same_text_and_usage(server: Server, plain: Server) -> None:
    texts, counts = [], []
    for one in (server, plain):
        client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="EMPTY", max_retries=0)
        stream = client.chat.completions.create(
            model="hearth-demo",
            messages=[{"role": "user", "content": REPEATS}],
            max_tokens=60,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
        texts.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        usage = chunks[-1].usage
        counts.append(usage.completion_tokens if usage else 0)
    assert texts[0] == texts[1]
    assert counts == [60, 60]
