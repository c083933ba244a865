"""A phone agent's client, written from what the public one sends and reads.

Owns the two request bodies, what is read of their answers, and the history. One image a request, in
the last message; the reply's text is `delta.content` alone; a reply that cannot be parsed ends the
task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from hearth.client.blocking import BlockingClient
from hearth.client.wire import Target, message_of
from hearth.core.errors import RemoteError
from hearth.demo_phone.actions import Action, Finish
from hearth.demo_phone.messages import PastStep, step_messages, user_text
from hearth.demo_phone.parser import ReplyError, parse_action, split_reply
from hearth.demo_phone.words import Language

DEFAULT_MODEL = "autoglm-phone-9b"
API_KEY = "EMPTY"
PATH = "/v1/chat/completions"
CHECK_TIMEOUT_S = 30.0
STEP_SAMPLING: dict[str, Any] = {
    "max_tokens": 3000,
    "temperature": 0.0,
    "top_p": 0.85,
    "frequency_penalty": 0.2,
}


def check_body(model: str) -> dict[str, Any]:
    """The body of the start-up check."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": False,
    }


def step_body(model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of an agent's step."""
    return {"messages": messages, "model": model, **STEP_SAMPLING, "stream": True}


class AgentClient(BlockingClient):
    """Speaks to one server for one model. Every call raises RemoteError."""

    def __init__(self, target: Target, model: str = DEFAULT_MODEL) -> None:
        super().__init__(replace(target, api_key=target.api_key or API_KEY))
        self.model = model

    def check(self) -> str:
        """The start-up check; returns the text of the answer."""
        answer = self.post(PATH, check_body(self.model), CHECK_TIMEOUT_S)
        try:
            return str(answer["choices"][0]["message"]["content"])
        except (LookupError, TypeError) as error:
            raise RemoteError("the check's answer holds no choice") from error

    def reply(self, messages: list[dict[str, Any]]) -> Iterator[str]:
        """The pieces of a step's reply; close the iterator to end it early."""
        with closing(self.payloads(PATH, step_body(self.model, messages))) as payloads:
            for payload in payloads:
                yield _content(payload)


def _content(payload: bytes) -> str:
    """What an event adds to `content`; events without a choice add nothing."""
    try:
        data = msgspec.json.decode(payload)
        if data.get("error"):
            raise RemoteError(message_of(data))
        choices = data.get("choices") or []
        return str(choices[0]["delta"].get("content") or "") if choices else ""
    except (msgspec.DecodeError, LookupError, AttributeError, TypeError) as error:
        raise RemoteError("an event of the stream is not a chat's") from error


@dataclass(frozen=True, slots=True)
class AgentStep:
    """A reply, taken apart. `action` is a Finish where the reply could not be read (`error`)."""

    content: str
    thinking: str
    action: Action
    error: str = ""

    @property
    def is_last(self) -> bool:
        """Whether the task ends here."""
        return isinstance(self.action, Finish)


class Conversation:
    """The history of one task, as the client keeps it: its texts, no images."""

    def __init__(self, task: str, language: Language) -> None:
        self.task = task
        self.language = language
        self.past: list[PastStep] = []

    def messages(self, info: str, png: bytes) -> list[dict[str, Any]]:
        """The messages of the next step, with the current screenshot."""
        return step_messages(self.language, self.past, self._text(info), png)

    def replied(self, info: str, content: str) -> AgentStep:
        """Reads the reply to the messages of this screen and keeps it."""
        parts = split_reply(content)
        text = self._text(info)
        try:
            action, error = parse_action(parts.action), ""
        except ReplyError as failure:
            action, error = Finish(parts.action), str(failure)
        self.past.append(PastStep(text, parts.thinking, parts.action))
        return AgentStep(content, parts.thinking, action, error)

    def _text(self, info: str) -> str:
        return user_text(self.task, len(self.past), info)
