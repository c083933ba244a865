"""The reply's parser: the client's order of marks, and what it takes as an error."""

from __future__ import annotations

import pytest

from hearth.demo_phone.actions import Action, Back, Finish, Home, Launch, Swipe, Tap, Type
from hearth.demo_phone.parser import ReplyError, parse_action, split_reply

ACTIONS: list[Action] = [
    Tap((7, 999)),
    Type("咖啡 [1, 2]"),
    Swipe((800, 500), (200, 500)),
    Back(),
    Home(),
    Launch("相机"),
    Finish("Camera is open"),
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda one: type(one).__name__)
def test_every_action_is_read_as_it_was_written(action: Action) -> None:
    assert parse_action(split_reply(f"<think>a</think><answer>{action}").action) == action


def test_the_thinking_keeps_its_tags_where_an_action_follows() -> None:
    parts = split_reply('<think>Go.</think><answer>do(action="Back")')
    assert parts.thinking == "<think>Go.</think><answer>"
    assert parts.action == 'do(action="Back")'


def test_finish_is_looked_for_before_do() -> None:
    parts = split_reply('do(action="Back") finish(message="x")')
    assert parts.action == 'finish(message="x")'


def test_an_answer_without_a_known_call_is_what_stands_in_its_tags() -> None:
    parts = split_reply("<think>Hm.</think><answer>nothing</answer>")
    assert (parts.thinking, parts.action) == ("Hm.", "nothing")


@pytest.mark.parametrize(
    "text",
    [
        'do(action="Tap", element=[1, 2])</answer>',
        'do(action="Tap", element=[012, 2])',
        'do(action="Tap", element=[1])',
        'do(action="Tap", element=[1, 1000])',
        'do(action="Tap", element=["1", 2])',
        'do(action="Tap")',
        'do(action="Fly")',
        "do()",
        'do("Tap")',
        "finish()",
        "print(1)",
        'do(action="Type", text=open("x"))',
        "",
        "Hello there",
        f"do(action={'-' * 3000}1)",
        f"do(action={'-' * 900}1)",
        f"do(action={'[' * 150}{']' * 150})",
        f"do(action=1{'+1' * 3000})",
        f"do{'(action=1)' * 3000}",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_action_is_an_error(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_action(text)
