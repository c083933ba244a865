"""Prompts with the answers that a good model would give: what speculation is measured on.

The answers of agents repeat what stands in the conversation, those of the adversaries do not, or
only seem to. All are made from a seed, so that every run sees the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
NUM_TOKENS = 160  # of an answer, at most


@dataclass(frozen=True)
class Transcript:
    """Token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def phone_agent(random: random.Random) -> tuple[str, str]:
    """The next step of a phone agent: a thought, and an action in the one format that it has."""
    app = random.choice(["Settings", "Maps", "Clock", "Mail"])
    goal = random.choice(["turn Wi-Fi on", "set an alarm for seven", "find the way home"])
    reasons = [
        f"I need to open {app} first. I can see its icon on the screen, so I tap it.",
        f"{app} is open now. The entry I need is further down, so I scroll.",
        f"The list shows the entry for this task. To {goal}, I tap it.",
        f"The page is still loading. I wait a moment before I go on to {goal}.",
        f"This is the wrong page. I go back to {app} and look for the right entry.",
    ]

    def step() -> str:
        x, y = random.randrange(1000), random.randrange(1000)
        action = random.choice(
            [
                f'do(action="Tap", element=[{x},{y}])',
                f'do(action="Tap", element=[{y},{x}])',
                f'do(action="Swipe", start=[{x},800], end=[{x},{y}])',
                'do(action="Wait", duration="2 seconds")',
            ]
        )
        return f"<think>{random.choice(reasons)}</think>\n<answer>{action}</answer>"

    screen = f'** Screen Info **\n\n{{"current_app": "{app}"}}'
    turns = [f"<|user|>\nTask: {goal}\n\n{screen}\n<|assistant|>\n{step()}" for _ in range(6)]
    return "\n".join([*turns, f"<|user|>\n{screen}\n<|assistant|>\n"]), step()


def json_edit(random: random.Random) -> tuple[str, str]:
    """A document comes back with a few values changed."""
    rows = [
        {"id": n, "name": f"user{random.randrange(999)}", "role": "admin", "active": True}
        for n in range(8)
    ]
    before = json.dumps(rows, indent=1)
    for _ in range(3):
        rows[random.randrange(8)]["active"] = False
    after = json.dumps(rows, indent=1)
    return f"{before}\n<|user|>\nSwitch three users off.\n<|assistant|>\n", after


def code_edit(random: random.Random) -> tuple[str, str]:
    """A piece of a program comes back with a name changed."""
    text = (ROOT / "src/hearth/engine/budget.py").read_text(encoding="utf-8")
    start = random.randrange(200, 900)
    piece = text[start : start + 1800]
    return f"{piece}\n<|user|>\nRename it.\n<|assistant|>\n", piece.replace("missing", "lacking")


def prose(random: random.Random) -> tuple[str, str]:
    """English that goes on without repeating what was said."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    start = random.randrange(1000, 9000)
    return text[start : start + 1500], text[start + 1500 : start + 3000]


def _encoded(make: Callable[[random.Random], tuple[str, str]]) -> Callable[..., Transcript]:
    def transcript(tokenizer: Tokenizer, chance: random.Random) -> Transcript:
        prompt, answer = make(chance)
        ids = tokenizer.encode(answer, add_special_tokens=False).ids[:NUM_TOKENS]
        known = tokenizer.encode(prompt, add_special_tokens=False).ids
        return Transcript(tuple(known), tuple(ids))

    return transcript


def digits(_: Tokenizer, chance: random.Random) -> Transcript:
    """Ten tokens at random: short matches everywhere, and each is wrong nine times of ten."""
    known = [100 + chance.randrange(10) for _ in range(400 + NUM_TOKENS)]
    return Transcript(tuple(known[:400]), tuple(known[400:]))


def traps(_: Tokenizer, chance: random.Random) -> Transcript:
    """Matches of six tokens, after which something else comes every time."""
    known: list[int] = []
    while len(known) < 400 + NUM_TOKENS:
        known += [*range(100, 106), *(chance.randrange(200, 3000) for _ in range(5))]
    return Transcript(tuple(known[:400]), tuple(known[400 : 400 + NUM_TOKENS]))


AGENTS: Mapping[str, Callable[..., Transcript]] = {
    "phone agent": _encoded(phone_agent),
    "JSON edit": _encoded(json_edit),
    "code edit": _encoded(code_edit),
}
ADVERSARIES: Mapping[str, Callable[..., Transcript]] = {
    "prose": _encoded(prose),
    "digits": digits,
    "traps": traps,
}
