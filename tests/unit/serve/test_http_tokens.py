"""/tokenize, /detokenize and /version."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import MAX_MODEL_LEN, FakeEngine, toy_model

from hearth import __version__


async def test_a_text_goes_to_tokens_and_back(client: httpx.AsyncClient) -> None:
    text = "hello wörld 🙂"
    body = (await client.post("/tokenize", json={"model": "toy", "prompt": text})).json()
    assert body["tokens"] == toy_model().text.tokenizer.encode(text)
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == MAX_MODEL_LEN
    assert "token_strs" not in body
    back = (await client.post("/detokenize", json={"tokens": body["tokens"]})).json()
    assert back == {"prompt": text}


async def test_token_strings_are_the_vocabularys(client: httpx.AsyncClient) -> None:
    fields = {"prompt": "a b", "return_token_strs": True}
    body = (await client.post("/tokenize", json=fields)).json()
    assert len(body["token_strs"]) == body["count"]
    assert "".join(body["token_strs"]) == "aĠb"


async def test_special_tokens_are_texts_again(client: httpx.AsyncClient) -> None:
    assert (await client.post("/detokenize", json={"tokens": [0]})).json() == {
        "prompt": "<|endoftext|>"
    }


async def test_messages_are_rendered_as_the_chat_endpoint_does(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    body = (await client.post("/tokenize", json={"messages": messages})).json()
    await client.post("/v1/chat/completions", json={"messages": messages})
    assert tuple(body["tokens"]) == engine.submitted[0].prompt
    fields = {"messages": messages, "add_generation_prompt": False}
    shorter = (await client.post("/tokenize", json=fields)).json()
    assert shorter["count"] < body["count"]


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, 400),
        ("/tokenize", {"prompt": "a", "model": "gpt"}, 404),
        ("/detokenize", {"tokens": [10**6]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": "ab"}, 400),
        ("/detokenize", {}, 400),
    ],
)
async def test_wrong_bodies_are_refused(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], status: int
) -> None:
    response = await client.post(path, json=fields)
    assert response.status_code == status
    assert response.json()["error"]["message"]


async def test_version(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}
