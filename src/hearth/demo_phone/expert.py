"""What a perfect agent does: the thought and the action for a task on a phone in some state.

The built-in model learns from it, and tests run it through the whole simulated phone. It decides
by what a screenshot shows and by what happened before, so that a model can learn to do the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hearth.demo_phone.actions import (
    NEXT_PAGE,
    NEXT_ROWS,
    Action,
    Back,
    Finish,
    Home,
    Launch,
    Swipe,
    Tap,
    Type,
)
from hearth.demo_phone.layout import layout
from hearth.demo_phone.look import Look
from hearth.demo_phone.state import SETTINGS, PhoneState
from hearth.demo_phone.tasks import Task
from hearth.demo_phone.words import (
    APPS,
    BUTTON_PAIRS,
    BUTTONS,
    QUERIES,
    SWITCHES,
    WIDGETS,
    Language,
    Name,
)

# The element's name always stands before its coordinates.
THOUGHTS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "tap": ("Tap {}.", "I see {}. Tap {}."),
        "dialog": ("A dialog. Tap {}.",),
        "swipe": ("No {} here. Swipe.", "{} is not on this page."),
        "home": ("Go home.",),
        "back": ("Go back.",),
        "type": ("Type {}.",),
        "launch": ("Launch {}.",),
        "finish": ("Done.", "The task is done."),
    },
    "zh": {
        "tap": ("点{}。", "看到{}。点{}。"),
        "dialog": ("有弹窗。点{}。",),
        "swipe": ("没有{}。滑动。", "这一页没有{}。"),
        "home": ("回主屏幕。",),
        "back": ("返回。",),
        "type": ("输入{}。",),
        "launch": ("启动{}。",),
        "finish": ("完成了。", "任务完成了。"),
    },
}
_ALL = {**APPS, **SWITCHES, **BUTTONS, **WIDGETS}


@dataclass(frozen=True, slots=True)
class Decision:
    """A thought in the phone's language, the action, and what it aims at (a tap's element)."""

    thought: str
    action: Action
    target: str = ""


@dataclass(frozen=True, slots=True)
class Expert:
    """Decides for one task; `style` picks the wording of the thoughts."""

    task: Task
    look: Look
    style: int = 0

    def decide(self, state: PhoneState) -> Decision:
        """The next step."""
        task = self.task
        if state.dialog is not None:
            key = task.key if task.kind == "button" else BUTTON_PAIRS[state.dialog][1]
            return self._tap(key, state, "dialog")
        if task.kind == "button":
            return self._finish(state)
        if self._is_seen_to_be_reached(state):
            if task.then and state.app is not None:
                is_home = task.then == "home"
                thought = self._thought(task.then, state)
                return Decision(thought, Home() if is_home else Back())
            return self._finish(state)
        if task.kind == "launch":
            name = APPS[task.key].in_(state.language)
            return Decision(self._thought("launch", state, APPS[task.key]), Launch(name))
        place = {"switch": SETTINGS, "search": task.app}.get(task.kind, task.key)
        if state.app != place:
            return self._go_to(place, state)
        return self._flip(state) if task.kind == "switch" else self._search(state)

    def _is_seen_to_be_reached(self, state: PhoneState) -> bool:
        """Reached, and visible or done by the agent itself."""
        if not self.task.is_goal_reached(state):
            return False
        if self.task.kind != "switch" or ("set", self.task.key) in state.log:
            return True
        return state.app == SETTINGS and self.task.key in state.pages[state.page]

    def _go_to(self, app: str, state: PhoneState) -> Decision:
        if state.app is not None:
            return Decision(self._thought("home", state), Home())
        if app in state.pages[state.page]:
            return self._tap(app, state)
        back = Swipe(NEXT_PAGE.end, NEXT_PAGE.start)
        swipe = NEXT_PAGE if state.page == 0 else back
        return Decision(self._thought("swipe", state, APPS[app]), swipe)

    def _flip(self, state: PhoneState) -> Decision:
        key = self.task.key
        if key in state.pages[state.page]:
            return self._tap(key, state)
        back = Swipe(NEXT_ROWS.end, NEXT_ROWS.start)
        swipe = NEXT_ROWS if state.page == 0 else back
        return Decision(self._thought("swipe", state, SWITCHES[key]), swipe)

    def _search(self, state: PhoneState) -> Decision:
        query = QUERIES[self.task.key]
        words = query.in_(state.language)
        if state.text == words:
            return self._tap("go", state)
        if state.is_focused:
            return Decision(self._thought("type", state, query), Type(words))
        return self._tap("field", state)

    def _tap(self, key: str, state: PhoneState, thought: str = "tap") -> Decision:
        element = next(one for one in layout(state, self.look) if one.key == key)
        return Decision(self._thought(thought, state, _ALL[key]), Tap(element.center), key)

    def _finish(self, state: PhoneState) -> Decision:
        return Decision(self._thought("finish", state), Finish(self._message(state.language)))

    def _thought(self, kind: str, state: PhoneState, name: Name | None = None) -> str:
        texts = THOUGHTS[state.language][kind]
        words = name.in_(state.language) if name else ""
        return texts[self.style % len(texts)].replace("{}", words)

    def _message(self, language: Language) -> str:
        task = self.task
        is_english = language == "en"
        match task.kind:
            case "open" | "launch":
                name = APPS[task.key].in_(language)
                return f"{name} is open" if is_english else f"{name}已打开"
            case "switch":
                name = SWITCHES[task.key].in_(language)
                if is_english:
                    return f"{name} is {'on' if task.is_on else 'off'}"
                return f"{name}已{'开启' if task.is_on else '关闭'}"
            case "search":
                name = QUERIES[task.key].in_(language)
                return f"Found {name}" if is_english else f"找到{name}了"
            case "button":
                name = BUTTONS[task.key].in_(language)
                return f"{name} is tapped" if is_english else f"已点{name}"


def random_style(rng: random.Random) -> int:
    """A way to word thoughts, kept for a whole task."""
    return rng.randrange(2)
