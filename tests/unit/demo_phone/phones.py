"""Phones and agents for the tests of the simulated phone."""

from __future__ import annotations

import random
from typing import Any

from hearth.demo_phone.expert import Expert
from hearth.demo_phone.look import random_look
from hearth.demo_phone.messages import reply_text
from hearth.demo_phone.session import Device
from hearth.demo_phone.state import random_state
from hearth.demo_phone.tasks import Task
from hearth.demo_phone.words import Language

WIDTH, HEIGHT = 216, 480


def device(seed: int = 1, language: Language = "en") -> Device:
    rng = random.Random(seed)
    state = random_state(language, rng)
    return Device(state, random_look(rng, WIDTH, HEIGHT), WIDTH, HEIGHT)


class PerfectAgent:
    """Answers as the expert does; keeps what it was sent."""

    def __init__(self, task: Task, phone: Device) -> None:
        self._expert = Expert(task, phone.look)
        self._phone = phone
        self.seen: list[list[dict[str, Any]]] = []

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.seen.append(messages)
        decision = self._expert.decide(self._phone.state)
        return reply_text(decision.thought, str(decision.action))
