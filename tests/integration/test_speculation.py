"""A server that speculates answers as one that does not, to the byte, and says how often it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.integration.server import SMALL, Server

TOKEN = 511
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


def counts(server: Server) -> dict[str, int]:
    server.wait_idle()
    found = server.health()["engine"]
    names = ("steps", "generated_tokens", "drafts", "draft_tokens", "accepted_tokens")
    return {name: found[name] for name in names}


def test_every_answer_is_the_same_and_what_is_accepted_saves_steps(
    plain: Server, tmp_path: Path
) -> None:
    """Drafts are bought by measured prices. A new server has measured nothing: it drafts where a
    text repeats itself, and all of it comes true where the text is one token over and over. Which
    of the other answers have drafts is up to the clock.
    """
    certain = {"prompt": [TOKEN] * 32, "logit_bias": {str(TOKEN): 100}}
    with Server(tmp_path, *SMALL) as server:
        assert "speculation: ngram" in server.stdout
        assert answer(server, **certain) == answer(plain, **certain)
        after = counts(server)
        assert after["drafts"] > 0
        assert after["accepted_tokens"] == after["draft_tokens"] >= after["drafts"]
        assert after["generated_tokens"] == 90 == after["steps"] + after["accepted_tokens"]
        for fields in FIELDS:
            assert answer(server, **fields) == answer(plain, **fields), fields
    without = counts(plain)
    assert without["drafts"] == without["draft_tokens"] == without["accepted_tokens"] == 0


def test_a_stream_has_the_same_text_and_usage(server: Server, plain: Server) -> None:
    texts, num_tokens = [], []
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
        num_tokens.append(usage.completion_tokens if usage else 0)
    assert texts[0] == texts[1]
    assert num_tokens == [60, 60]
