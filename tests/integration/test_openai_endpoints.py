"""The official client over completions and models, and the endpoints beside OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from tests.integration.server import ENDLESS_TOKENS, SMALL, Server

MODEL = "org/hearth-demo"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model has a slash in its name."""
    with Server(tmp_path_factory.mktemp("named"), *SMALL, "--served-model-name", MODEL) as found:
        yield found


@pytest.fixture
def client(named: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{named.url}/v1", api_key="EMPTY", max_retries=0)


def test_a_model_with_a_slash_in_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_completions_whole_and_streamed_are_the_same(client: openai.OpenAI, named: Server) -> None:
    prompts = ["hearth is", "hearth 是"]
    whole = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=12, temperature=0, echo=True
    )
    assert [choice.index for choice in whole.choices] == [0, 1]
    for prompt, choice in zip(prompts, whole.choices, strict=True):
        assert choice.text.startswith(prompt)
    stream = client.completions.create(
        model=MODEL,
        prompt=prompts,
        max_tokens=12,
        temperature=0,
        echo=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts = ["", ""]
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    named.wait_idle()


def test_tokens_as_prompts_give_what_their_text_gives(client: openai.OpenAI, named: Server) -> None:
    body = httpx.post(f"{named.url}/tokenize", json={"prompt": "hearth is"}).json()
    assert body["count"] == len(body["tokens"])
    texts = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
        .choices[0]
        .text
        for prompt in ("hearth is", body["tokens"], [body["tokens"]])
    ]
    assert len(set(texts)) == 1
    back = httpx.post(f"{named.url}/detokenize", json={"tokens": body["tokens"]}).json()
    assert "hearth is" in back["prompt"]


def test_the_official_client_sees_refusals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="infilling"):
        client.completions.create(model=MODEL, prompt="a", suffix="b")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="a")


def test_a_full_queue_answers_at_once_and_says_when_to_try_again(endless_server: Server) -> None:
    """Six answers fill it, and end only with the stream that they are in."""
    url = endless_server.url
    body = {"prompt": ["a"] * 6, "max_tokens": ENDLESS_TOKENS, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as running:
        assert running.status_code == 200
        for path, fields in (
            ("/v1/completions", {"prompt": "b"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "b"}]}),
        ):
            refused = httpx.post(f"{url}{path}", json=fields, timeout=60)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
            assert refused.elapsed.total_seconds() < 1
    endless_server.wait_idle()
    assert endless_server.chat("What is hearth?", max_tokens=4).status_code == 200
