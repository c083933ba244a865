"""The conversation of an agent step, exactly as the phone agent's client sends it.

The system message is a string; a user message is a list, the image first and then the text; what
was said before keeps its text and loses its image. An assistant's message of the past is built
again from the parsed reply, so that its tags may be nested.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from hearth.demo_phone.words import Language, app_title

SYSTEM: dict[Language, str] = {"en": "You are a phone agent.", "zh": "你是手机助手。"}
# What the client calls the launcher, in every language.
LAUNCHER_NAME = "System Home"
SCREEN_TITLE = "** Screen Info **"


@dataclass(frozen=True, slots=True)
class PastStep:
    """A step that is over: the user's text and the reply as it was parsed."""

    text: str
    thinking: str
    action: str


def screen_info(app: str | None, language: Language) -> str:
    """What the client says of the screen beside the image."""
    name = LAUNCHER_NAME if app is None else app_title(app).in_(language)
    return json.dumps({"current_app": name}, ensure_ascii=False)


def user_text(task: str, step: int, info: str) -> str:
    """The text of a step's user message; the task is said in the first one alone."""
    return f"{task}\n\n{info}" if step == 0 else f"{SCREEN_TITLE}\n\n{info}"


def reply_text(thought: str, action: str) -> str:
    """A whole reply as a model writes it, up to the tag that ends it."""
    return f"<think>{thought}</think><answer>{action}"


def assistant_text(step: PastStep) -> str:
    """What the client keeps of a reply."""
    return f"<think>{step.thinking}</think><answer>{step.action}</answer>"


def image_url(png: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def step_messages(
    language: Language, past: list[PastStep], text: str, png: bytes
) -> list[dict[str, Any]]:
    """The messages of one step."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM[language]}]
    for step in past:
        messages.append({"role": "user", "content": [{"type": "text", "text": step.text}]})
        messages.append({"role": "assistant", "content": assistant_text(step)})
    image = {"type": "image_url", "image_url": {"url": image_url(png)}}
    messages.append({"role": "user", "content": [image, {"type": "text", "text": text}]})
    return messages
