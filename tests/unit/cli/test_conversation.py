"""The slash commands of `hearth chat`, and how messages of several lines are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hearth.cli.chat import read_message
from hearth.cli.conversation import Conversation, QuitError
from hearth.core.errors import ConfigError


def typed(*lines: str) -> Callable[[str], str]:
    rest = iter(lines)
    return lambda _: next(rest)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Hi"], "Hi"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (['"""', "a", "", 'b"""'], "a\n\nb"),
        (['"""a', '"""'], "a"),
        (['"""a"""'], "a"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    assert read_message(typed(*lines)) == message


def test_the_body_has_system_prompt_history_and_settings() -> None:
    chat = Conversation("m", "be brief", {"max_tokens": 5})
    chat.say("Hi")
    chat.answered("Hello")
    chat.say("More")
    assert chat.body() == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "More"},
        ],
        "max_tokens": 5,
    }


def test_a_question_without_an_answer_is_taken_back() -> None:
    chat = Conversation("m")
    chat.say("Hi")
    chat.answered("")
    assert chat.messages == []


def test_commands_change_the_conversation() -> None:
    chat = Conversation("m")
    assert "/save" in chat.command("/help")
    chat.command("/system be brief")
    assert chat.command("/system") == "be brief"
    chat.say("Hi")
    chat.command("/clear")
    assert chat.messages == []
    assert chat.system == "be brief"
    chat.command("/set temperature 0.2")
    chat.command("/set stop END")
    assert chat.settings == {"temperature": 0.2, "stop": "END"}
    assert "temperature 0.2" in chat.command("/set")
    chat.command("/set stop default")
    assert chat.settings == {"temperature": 0.2}
    with pytest.raises(QuitError):
        chat.command("/quit")


def test_a_saved_conversation_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chat = Conversation("m", "be brief", {"seed": 1})
    chat.say("你好")
    chat.answered("Hello")
    chat.command(f"/save {path}")
    other = Conversation("m")
    assert "2 messages" in other.command(f"/load {path}")
    assert other.body() == chat.body()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/unknown", "no command /unknown"),
        ("/set temprature 1", "permitted: temperature"),
        ("/set temperature", "a value is missing"),
        ("/save", "a file name is missing"),
        ("/save /no/such/place", "cannot be written"),
        ("/load /no/such/place", "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Conversation("m").command(line)


@pytest.mark.parametrize("text", ["", "[]", '{"messages": 5}', '{"messages": [{}]}'])
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    chat = Conversation("m", "s")
    chat.say("Hi")
    with pytest.raises(ConfigError, match="not a saved conversation"):
        chat.command(f"/load {path}")
    assert chat.system == "s"
    assert len(chat.messages) == 1
