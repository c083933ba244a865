"""/tokenize, /detokenize and /version."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from tests.unit.serve.fake_engine import MAX_MODEL_LEN, FakeEngine, toy_model

from hearth import __version__
from hearth.engine.text.tokenizer import Tokenizer
from hearth.serve.http.tokens import THREAD_THRESHOLD_TOKENS


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


async def test_null_asks_for_the_default(client: httpx.AsyncClient) -> None:
    fields = {"messages": [{"role": "user", "content": "Hi"}]}
    expected = (await client.post("/tokenize", json=fields)).json()
    found = await client.post("/tokenize", json={**fields, "add_generation_prompt": None})
    assert found.json() == expected


async def test_many_tokens_are_decoded_in_a_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def decode_all(self: Tokenizer, tokens: list[int]) -> str:
        threads.append(threading.get_ident())
        return ""

    monkeypatch.setattr(Tokenizer, "decode_all", decode_all)
    for num_tokens in (10, THREAD_THRESHOLD_TOKENS):
        body = {"tokens": [1] * num_tokens}
        assert (await client.post("/detokenize", json=body)).json() == {"prompt": ""}
    assert threads[0] == threading.get_ident() != threads[1]
