"""`--reasoning-parser` with the official client: `reasoning_content` as DeepSeek's API has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.integration.server import SMALL, Server
from tests.support.scripted_model import write_scripted_model

# Both marks are cut: no token of the model is one, or has none of the text beside it.
PIECES = ("<thi", "nk>The", " kettle", " sings.", "</thi", "nk", ">\nTake", " it", " off.")
REASONING, CONTENT = "The kettle sings.", "\nTake it off."
REQUEST: dict[str, Any] = {
    "model": "kettle",
    "messages": [{"role": "user", "content": "What now?"}],
    "temperature": 0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_model(tmp_path_factory.mktemp("scripted"), PIECES)


def started(directory: Path, model: Path, *flags: str) -> Server:
    # The canary would not serve it: behind a token that is not in its script all logits are 0.
    named = ("--served-model-name", "kettle", "--no-canary")
    return Server(directory, str(model), *SMALL, *named, *flags)


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0)


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    directory = tmp_path_factory.mktemp("reasoning")
    with (
        started(directory, model, "--reasoning-parser", "deepseek_r1") as server,
        client_of(server) as found,
    ):
        yield found
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


def test_a_whole_message_has_both(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**REQUEST)
    (choice,) = answer.choices
    assert choice.message.content == CONTENT
    assert choice.message.reasoning_content == REASONING
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(PIECES) + 1, "the reasoning's, and the end"


def test_a_streams_chunk_has_one_or_the_other_reasoning_first(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(stream=True, **REQUEST)
    choices = [choice for chunk in stream for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert choices[-1].finish_reason == "stop"
    fields = [
        {name: text for name, text in choice.delta.model_dump(exclude_none=True).items() if text}
        for choice in choices[1:-1]
    ]
    assert {len(field) for field in fields} == {1}
    order = [name for field in fields for name in field]
    assert order == sorted(order, reverse=True)
    for name, expected in (("reasoning_content", REASONING), ("content", CONTENT)):
        pieces = [field[name] for field in fields if name in field]
        assert "".join(pieces) == expected
        assert len(pieces) > 1, "not at once, in the end"


def test_reasoning_that_is_cut_off_has_no_content(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(max_tokens=3, **REQUEST).choices
    assert choice.message.reasoning_content == "The kettle"
    assert choice.message.content == ""
    assert choice.finish_reason == "length"


def test_without_the_flag_the_content_is_all_of_it(model: Path, tmp_path: Path) -> None:
    with started(tmp_path, model) as server, client_of(server) as client:
        (choice,) = client.chat.completions.create(**REQUEST).choices
        assert choice.message.content == "".join(PIECES)
        assert not choice.message.model_extra
