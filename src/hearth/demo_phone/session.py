"""One task on one simulated phone, from the first screenshot to the end.

Joins the phone, its drawing and the agent: draws a screenshot, asks, carries the action out, and
hands every step to whoever watches.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hearth.demo_phone.actions import Action, Tap
from hearth.demo_phone.agent import AgentStep, Conversation
from hearth.demo_phone.drawing import draw_screen
from hearth.demo_phone.layout import element_at, layout
from hearth.demo_phone.look import Look
from hearth.demo_phone.messages import screen_info
from hearth.demo_phone.state import Phone, PhoneState
from hearth.demo_phone.tasks import Task

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_STEPS = 10
# Messages in, the whole reply out; raises RemoteError.
Answerer = Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class Device:
    """A phone that can be seen and used: its state, its look and its screen's size."""

    state: PhoneState
    look: Look
    width: int
    height: int

    def screenshot(self) -> Image:
        """The screen now, with an alpha channel as phones give it."""
        return draw_screen(self.state, self.look, self.width, self.height).convert("RGBA")

    def perform(self, action: Action) -> str:
        """Carries an action out; returns the key of what a tap hit, or ""."""
        hit = None
        if isinstance(action, Tap):
            element = element_at(layout(self.state, self.look), action.at)
            hit = element.key if element else None
        Phone(self.state).perform(action, hit)
        return hit or ""


@dataclass(frozen=True, slots=True)
class SeenStep:
    """A step as a watcher sees it: the screenshot before it, the reply, and what a tap hit."""

    number: int
    screenshot: Image
    step: AgentStep
    hit: str


def png_of(image: Image) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def run_task(
    device: Device, wording: str, answer: Answerer, max_steps: int = MAX_STEPS
) -> Iterator[SeenStep]:
    """Every step until the agent finishes, or `max_steps`. Raises what `answer` raises."""
    conversation = Conversation(wording, device.state.language)
    for number in range(max_steps):
        screenshot = device.screenshot()
        info = screen_info(device.state.app, device.state.language)
        content = answer(conversation.messages(info, png_of(screenshot)))
        step = conversation.replied(info, content)
        hit = device.perform(step.action)
        yield SeenStep(number, screenshot, step, hit)
        if step.is_last:
            return


def is_success(task: Task, state: PhoneState, steps: list[SeenStep]) -> bool:
    """Whether the phone is as the task wants it and the agent said so in the right form."""
    if not steps or not steps[-1].step.is_last or steps[-1].step.error:
        return False
    return task.is_done(state)
