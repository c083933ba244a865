"""Reads an agent's reply as the phone agent's client does.

First `finish(message=` is looked for, then `do(action=`, then `<answer>`; what stands before is
the thinking, what follows is the action. An action is read as a Python call with literals, so that
a trailing tag or a number such as 012 is an error, and an error ends the task.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from hearth.demo_phone.actions import (
    MAX_COORDINATE,
    Action,
    Back,
    Finish,
    Home,
    Launch,
    Point,
    Swipe,
    Tap,
    Type,
)

_MARKS = ("finish(message=", "do(action=")
# Of a text that is no Python; of one that nests too deep, which a model that repeats itself writes.
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


class ReplyError(ValueError):
    """A reply that holds no action; the client takes the task as finished."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The two parts of a reply, as text."""

    thinking: str
    action: str


def split_reply(content: str) -> Reply:
    """Cuts a reply into thinking and action; without any mark all of it is the action."""
    for mark in _MARKS:
        if mark in content:
            thinking, _, rest = content.partition(mark)
            return Reply(thinking.strip(), mark + rest)
    if "<answer>" in content:
        thinking, _, rest = content.partition("<answer>")
        thinking = thinking.replace("<think>", "").replace("</think>", "").strip()
        return Reply(thinking, rest.replace("</answer>", "").strip())
    return Reply("", content)


def parse_action(text: str) -> Action:
    """The action that the text calls. Raises ReplyError."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except _UNREADABLE as error:
        raise ReplyError(f"the action is not a call: {text!r}") from error
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
        raise ReplyError(f"the action is not a call with named arguments: {text!r}")
    try:
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        return _action(call.func.id, arguments)
    except (*_UNREADABLE, LookupError, TypeError) as error:
        raise ReplyError(f"the action cannot be carried out: {text!r}") from error


def _action(function: str, given: dict[str, Any]) -> Action:
    if function == "finish":
        return Finish(str(given["message"]))
    if function != "do":
        raise ValueError(function)
    match given["action"]:
        case "Tap":
            return Tap(_point(given["element"]))
        case "Type":
            return Type(str(given["text"]))
        case "Swipe":
            return Swipe(_point(given["start"]), _point(given["end"]))
        case "Back":
            return Back()
        case "Home":
            return Home()
        case "Launch":
            return Launch(str(given["app"]))
        case other:
            raise ValueError(other)


def _point(value: Any) -> Point:
    x, y = value
    if not (isinstance(x, int) and isinstance(y, int)):
        raise TypeError(value)
    if not (0 <= x <= MAX_COORDINATE and 0 <= y <= MAX_COORDINATE):
        raise ValueError(value)
    return x, y
