"""Reasoning apart from the content: the same however the text comes, and only where it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.serve.fake_engine import FakeEngine, client_for, toy_model
from tests.unit.serve.test_http_chat import events
from tests.unit.text import templates

from hearth.serve.reasoning import ReasoningSplitter, Split, split_reasoning

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
THINKS = "<think>a tap</think>\n<answer>do(</answer>"


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        (THINKS, False, Split("a tap", "\n<answer>do(</answer>")),
        ("\n <think>a</think>b", False, Split("a", "b")),
        ("a <think>b</think>", False, Split("", "a <think>b</think>")),
        ("<thin", False, Split("", "<thin")),
        ("", False, Split("", "")),
        ("<think>a</thi", False, Split("a</thi", "")),
        ("a</think>b<think>c</think>", True, Split("a", "b<think>c</think>")),
        ("<</think></think>", True, Split("<", "</think>")),
    ],
)
def test_what_is_reasoning(text: str, is_open: bool, expected: Split) -> None:
    assert split_reasoning(text, is_open=is_open) == expected


@given(
    pieces=st.lists(st.sampled_from(["<", "think>", "<think>", "</", "</think>", "a", " ", "/t"])),
    is_open=st.booleans(),
)
def test_how_the_text_comes_changes_nothing(pieces: list[str], is_open: bool) -> None:
    whole = split_reasoning("".join(pieces), is_open=is_open)
    for texts in (pieces, list("".join(pieces))):
        splitter = ReasoningSplitter(is_open=is_open)
        found = [*map(splitter.feed, texts), splitter.flush()]
        assert (
            Split("".join(f.reasoning for f in found), "".join(f.content for f in found)) == whole
        )


async def answers(
    is_separate: bool, text: str, template: str = templates.CHATML, **fields: Any
) -> Any:
    """The message of a whole answer, and the joined deltas of a streamed one."""
    model = toy_model(template, separates_reasoning=is_separate)
    engine = FakeEngine(model.text.tokenizer, text)
    body = {"model": "toy", "messages": HI, **fields}
    async with client_for(engine, model) as client:
        whole = (await client.post(URL, json=body)).json()["choices"][0]["message"]
        chunks = events(await client.post(URL, json={**body, "stream": True, "logprobs": True}))
    joined = {"content": "", "reasoning_content": ""}
    for chunk in chunks:
        for name, piece in chunk["choices"][0]["delta"].items():
            joined[name] = joined.get(name, "") + piece
    tokens = [
        one["token"]
        for c in chunks
        for one in (c["choices"][0]["logprobs"] or {}).get("content", ())
    ]
    assert "".join(tokens) == text
    return whole, joined


async def test_it_stays_in_the_content_unless_asked() -> None:
    whole, streamed = await answers(False, THINKS)
    assert whole == {"role": "assistant", "content": THINKS}
    assert (streamed["content"], streamed["reasoning_content"]) == (THINKS, "")


async def test_a_server_that_was_asked_gives_it_apart() -> None:
    whole, streamed = await answers(True, THINKS)
    rest = "\n<answer>do(</answer>"
    assert whole == {"role": "assistant", "content": rest, "reasoning_content": "a tap"}
    assert (streamed["content"], streamed["reasoning_content"]) == (rest, "a tap")


async def test_a_template_may_open_it() -> None:
    whole, streamed = await answers(True, "b</think>c", templates.CHATML + "<think>\n")
    assert whole == {"role": "assistant", "content": "c", "reasoning_content": "b"}
    assert (streamed["content"], streamed["reasoning_content"]) == ("c", "b")


@pytest.mark.parametrize(
    ("begun", "is_inside"),
    [
        ("<think>half a", True),
        ([{"type": "text", "text": "\n <think>"}, {"type": "text", "text": "half a"}], True),
        ("<think>a</think>half a", False),
        ("the tag <think> is", False),  # as it would be split if it came in one answer
        ("half a", False),
    ],
)
@pytest.mark.parametrize("echo", [False, True])
async def test_a_message_that_is_continued_goes_on_where_it_ended(
    begun: Any, is_inside: bool, echo: bool
) -> None:
    messages = [*HI, {"role": "assistant", "content": begun}]
    goes_on: dict[str, Any] = {
        "add_generation_prompt": False,
        "continue_final_message": True,
        "echo": echo,
    }
    rest = " thought</think>do it"
    for found in await answers(True, rest, messages=messages, **goes_on):
        assert found["content"].endswith("do it")
        reasoning = found.get("reasoning_content", "")
        assert ("thought" in reasoning) == is_inside
        assert ("thought" in found["content"]) != is_inside
        assert ("half a" in reasoning) == (is_inside and echo)
