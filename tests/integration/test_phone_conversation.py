"""A conversation as a phone agent has it, against the real server: what the cache makes possible
is taken from it, positions hold, and the stop tag is left out."""

from __future__ import annotations

import base64
import io
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
    model = write_directory(tmp_path_factory.mktemp("phone-model"))
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
