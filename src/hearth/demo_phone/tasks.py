"""What a phone can be asked to do: the wording, the success, and random tasks with their start.

A task is plain data. Whether it is done is read from the phone's state alone, never from what an
agent says.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from hearth.core.errors import ConfigError
from hearth.demo_phone.state import SETTINGS, PhoneState, random_state
from hearth.demo_phone.words import (
    APPS,
    BUTTON_PAIRS,
    BUTTONS,
    QUERIES,
    SEARCH_APPS,
    SWITCHES,
    Language,
    Name,
)

Kind = Literal["open", "launch", "switch", "search", "button"]
Then = Literal["", "home", "back"]
KINDS: tuple[Kind, ...] = ("open", "launch", "switch", "search", "button")
_WEIGHTS = (0.28, 0.06, 0.3, 0.28, 0.08)
# Every wording has the same parts, so that a task can also be read from what a person types.
WORDINGS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "open": ("Open {app}", "Go to {app}"),
        "launch": ("Launch {app}",),
        "switch on": ("Turn on {switch}", "Switch on {switch}"),
        "switch off": ("Turn off {switch}", "Switch off {switch}"),
        "search": ("Search for {query} in {app}", "Find {query} in {app}"),
        "button": ("Tap {button}", "Answer the dialog with {button}"),
        "home": (", then go home",),
        "back": (", then go back",),
    },
    "zh": {
        "open": ("打开{app}", "进入{app}"),
        "launch": ("启动{app}",),
        "switch on": ("开启{switch}", "把{switch}打开"),
        "switch off": ("关闭{switch}", "把{switch}关掉"),
        "search": ("在{app}里搜索{query}", "用{app}查找{query}"),
        "button": ("点{button}", "在弹窗里选{button}"),
        "home": ("，然后回到主屏幕",),
        "back": ("，然后返回",),
    },
}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do; `key` is of an app, a switch or a button, `app` where to search."""

    kind: Kind
    key: str
    is_on: bool = True
    app: str = ""
    then: Then = ""

    def is_goal_reached(self, state: PhoneState) -> bool:
        """Whether the main part is done, whatever comes then."""
        match self.kind:
            case "open" | "launch":
                return ("open", self.key) in state.log
            case "switch":
                return state.switches[self.key] == self.is_on
            case "search":
                query = QUERIES[self.key].in_(state.language)
                return ("search", f"{self.app} {query}") in state.log
            case "button":
                return ("button", self.key) in state.log

    def is_done(self, state: PhoneState) -> bool:
        """Whether the phone is as the task wants it at the end."""
        if not self.is_goal_reached(state) or state.dialog is not None:
            return False
        if any(event == "set" and key != self.key for event, key in state.log):
            return False
        if self.then:
            return state.app is None and state.log[-1][0] == "home"
        if self.kind in ("open", "launch"):
            return state.app == self.key
        return True


def wordings(task: Task, language: Language) -> tuple[str, ...]:
    """Every way to say the task."""
    table = WORDINGS[language]
    name = f"switch {'on' if task.is_on else 'off'}" if task.kind == "switch" else task.kind
    end = table[task.then][0] if task.then else ""
    return tuple(_filled(pattern, task, language) + end for pattern in table[name])


def _filled(pattern: str, task: Task, language: Language) -> str:
    names = _names_of(task)
    return re.sub(r"\{(\w+)\}", lambda match: names[match[1]].in_(language), pattern)


def _names_of(task: Task) -> dict[str, Name]:
    match task.kind:
        case "open" | "launch":
            return {"app": APPS[task.key]}
        case "switch":
            return {"switch": SWITCHES[task.key]}
        case "search":
            return {"app": APPS[task.app], "query": QUERIES[task.key]}
        case "button":
            return {"button": BUTTONS[task.key]}


def every_task() -> tuple[Task, ...]:
    """All tasks of the vocabulary."""
    tasks = [Task("open", app, then=then) for app in APPS for then in ("", "home", "back")]
    tasks += [Task("launch", app) for app in APPS]
    tasks += [
        Task("switch", key, is_on, then=then)
        for key in SWITCHES
        for is_on in (True, False)
        for then in ("", "home")
    ]
    tasks += [
        Task("search", key, app=app, then=then)
        for key in QUERIES
        for app in SEARCH_APPS
        for then in ("", "home")
    ]
    return (*tasks, *(Task("button", key) for key in BUTTONS))


def read_task(text: str, language: Language) -> Task:
    """The task that this text asks for. Raises ConfigError where there is none."""
    plain = _plain(text)
    for task in every_task():
        if any(_plain(one) == plain for one in wordings(task, language)):
            return task
    examples = [wordings(one, language)[0] for one in EXAMPLES]
    raise ConfigError(
        f"--task {text!r} is nothing that the simulated phone knows",
        hint="such as: " + "; ".join(examples),
    )


def _plain(text: str) -> str:
    return re.sub(r"[\s,，.。!！]", "", text).casefold()


EXAMPLES = (
    Task("open", "camera"),
    Task("switch", "wifi"),
    Task("search", "coffee", app="maps"),
    Task("open", "weather", then="home"),
    Task("launch", "music"),
)


def random_task(rng: random.Random) -> Task:
    """A task of a random kind."""
    kind = rng.choices(KINDS, weights=_WEIGHTS)[0]
    match kind:
        case "open":
            then: Then = rng.choices(("", "home", "back"), weights=(0.6, 0.25, 0.15))[0]
            return Task(kind, rng.choice(sorted(APPS)), then=then)
        case "launch":
            return Task(kind, rng.choice(sorted(APPS)))
        case "switch":
            then = rng.choices(("", "home"), weights=(0.8, 0.2))[0]
            return Task(kind, rng.choice(sorted(SWITCHES)), rng.random() < 0.5, then=then)
        case "search":
            then = rng.choices(("", "home"), weights=(0.85, 0.15))[0]
            app = rng.choice(SEARCH_APPS)
            return Task(kind, rng.choice(sorted(QUERIES)), app=app, then=then)
        case "button":
            return Task(kind, rng.choice(sorted(BUTTONS)))


def starting_state(task: Task, language: Language, rng: random.Random) -> PhoneState:
    """A phone on which the task is still to be done.

    Often at the launcher, sometimes in an app or under a dialog that is in the way.
    """
    state = random_state(language, rng)
    if task.kind == "switch":
        # Now and then it is as wanted already, and the agent has to see that.
        is_so_already = not task.then and rng.random() < 0.15
        state.switches[task.key] = task.is_on if is_so_already else not task.is_on
    place = rng.random()
    if place < 0.15:
        state.app = rng.choice([app for app in sorted(APPS) if app != task.key])
    elif place < 0.3 and task.kind == "switch":
        state.app = SETTINGS
    elif place < 0.4:
        state.page = 1
    if task.kind == "button":
        state.dialog = next(i for i, pair in enumerate(BUTTON_PAIRS) if task.key in pair)
    elif rng.random() < 0.12:
        state.dialog = rng.randrange(len(BUTTON_PAIRS))
    return state
