"""A conversation as a phone agent has it, against the real server: what the cache makes possible
is taken from it, positions hold, and the stop tag is left out."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image
from tests.integration.server import SMALL, Server
from tests.support.vision_directory import write_directory

NUM_STEPS = 10
BLOCK_SIZE = 16
CONTEXT = 50_000  # tokens, which are far more than are decoded while a test does something else
SYSTEM = "You are an agent that operates a phone. " * 12
AGENT_STEP: dict[str, Any] = {
    "max_tokens": 24,
    "temperature": 0.0,
    "top_p": 0.85,
    "frequency_penalty": 0.2,
}


@pytest.fixture
def client(phone_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{phone_server.url}/v1", api_key="EMPTY", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def phone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = write_directory(tmp_path_factory.mktemp("phone-model"), max_model_len=CONTEXT)
    flags = (*SMALL, "--block-size", str(BLOCK_SIZE), "--served-model-name", "autoglm-phone-9b")
    with Server(tmp_path_factory.mktemp("phone"), str(model), *flags) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.stderr


def screenshot(step: int) -> str:
    """A data URL of a screen with an alpha channel; each step another one."""
    random = np.random.default_rng(step)
    pixels = np.kron(random.integers(0, 256, (12, 6, 4)), np.ones((20, 20, 1))).astype(np.uint8)
    pixels[..., 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user(step: int, *, with_image: bool) -> dict[str, Any]:
    text = {"type": "text", "text": f"** Screen Info **\n\nstep {step} of the task"}
    image = {"type": "image_url", "image_url": {"url": screenshot(step)}}
    return {"role": "user", "content": [image, text] if with_image else [text]}


def test_ten_steps_take_from_the_cache_what_the_contract_makes_possible(
    phone_server: Server, client: OpenAI
) -> None:
    """A step shares the one before up to where that one's image began."""
    history: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    shared = 0  # tokens up to the image of the step before
    for step in range(NUM_STEPS):
        messages: Any = [*history, user(step, with_image=True)]
        answer = client.chat.completions.create(
            model="autoglm-phone-9b", messages=messages, **AGENT_STEP
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens or 0
        assert cached == shared // BLOCK_SIZE * BLOCK_SIZE, f"step {step}"
        shared = _tokens_before_the_image(phone_server, messages)
        content = answer.choices[0].message.content or ""
        assert "</answer>" not in content
        history += [user(step, with_image=False), {"role": "assistant", "content": content}]


def _tokens_before_the_image(server: Server, messages: list[dict[str, Any]]) -> int:
    """Of the last message: there, without the image, begins the next step's text."""
    bare = [*messages[:-1], {"role": "user", "content": ""}]
    body = {"messages": bare, "add_generation_prompt": False}
    found = httpx.post(f"{server.url}/tokenize", json=body, timeout=30).json()
    return len(found["tokens"])


def test_streamed_and_whole_answers_to_an_image_are_the_same(client: OpenAI) -> None:
    messages: Any = [{"role": "system", "content": SYSTEM}, user(3, with_image=True)]
    whole = client.chat.completions.create(
        model="autoglm-phone-9b", messages=messages, **AGENT_STEP
    )
    stream = client.chat.completions.create(
        model="autoglm-phone-9b", messages=messages, stream=True, **AGENT_STEP
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content


def test_another_screen_gives_another_answer(client: OpenAI) -> None:
    answers = set()
    for step in (100, 101, 102):
        message: Any = user(0, with_image=True)
        message["content"][0]["image_url"]["url"] = screenshot(step)
        answer = client.chat.completions.create(
            model="autoglm-phone-9b", messages=[message], **AGENT_STEP
        )
        answers.add(answer.choices[0].message.content)
    assert len(answers) > 1


def test_the_start_up_check_of_the_agent_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="autoglm-phone-9b",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=5,
        temperature=0.0,
        stream=False,
        timeout=30,
    )
    assert answer.choices


def _data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 200, 30)).save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    """A header that promises 60,000 × 60,000 pixels."""
    data = bytearray(_png(8, 8))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD_IMAGES = {
    "truncated": _data_url(_png(300, 300)[:-200]),
    "decompression bomb": _data_url(_bomb()),
    "text instead of base64": "data:image/png;base64,this is no base64!",
    "text as an image": _data_url(b"hello", "image/png"),
    "an SVG": _data_url(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
    "1 × 5000": _data_url(_png(1, 5000)),
    "empty": "data:image/png;base64,",
    "an address": "http://127.0.0.1:1/screen.png",
    "a file": "file:///etc/passwd",
}


@pytest.mark.parametrize("url", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_refused_and_the_server_goes_on(phone_server: Server, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
    answer = httpx.post(f"{phone_server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "messages.0.content.0" in json.dumps(error)
    assert httpx.get(f"{phone_server.url}/health").json()["status"] == "UP"


def test_more_images_than_allowed_and_bodies_of_50_mb_are_refused(phone_server: Server) -> None:
    part = {"type": "image_url", "image_url": {"url": _data_url(_png(60, 60))}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [part] * 11}]}
    url = f"{phone_server.url}/v1/chat/completions"
    answer = httpx.post(url, json=body, timeout=60)
    assert answer.status_code == 400
    assert "limit-images" in answer.text
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000_000}}
    body = {"messages": [{"role": "user", "content": [large]}]}
    assert httpx.post(url, json=body, timeout=60).status_code == 413
    assert httpx.get(f"{phone_server.url}/health").json()["status"] == "UP"


def test_decoding_goes_on_while_an_image_is_encoded(phone_server: Server, client: OpenAI) -> None:
    """A stream that runs gets tokens between the chunks of another request's image."""
    stream = client.chat.completions.create(
        model="autoglm-phone-9b",
        messages=[{"role": "user", "content": "Count."}],
        max_tokens=CONTEXT - 1000,
        temperature=0.0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    before = httpx.get(f"{phone_server.url}/health").json()["engine"]
    message: Any = user(77, with_image=True)
    client.chat.completions.create(
        model="autoglm-phone-9b", messages=[message], max_tokens=1, temperature=0.0
    )
    after = httpx.get(f"{phone_server.url}/health").json()["engine"]
    assert after["images_encoded"] == before["images_encoded"] + 1
    assert after["generated_tokens"] - before["generated_tokens"] > 3
    stream.close()
