"""What a perfect agent does: the thought and the action for a task on a phone in some state.

The built-in model learns from it, and tests run it through the whole simulated phone. It decides
by what a screenshot shows and by what happened before, so that a model can learn to do the same.
"""

from __future__ import annotations

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
from hearth.demo_phone.layout import Element, layout
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

# A thought first names what is looked for, then says whether or how the screen shows it, and then
# what to do: each word follows from the words before it and from the screen.
SIGHTS: dict[Language, dict[str, str]] = {
    "en": {"here": "{}: here.", "absent": "{}: not here.", "on": "{}: on.", "off": "{}: off."},
    "zh": {"here": "{}：在。", "absent": "{}：不在。", "on": "{}：开着。", "off": "{}：关着。"},
}
THOUGHTS: dict[Language, dict[str, str]] = {
    "en": {
        "tap": "Tap.",
        "dialog": "A dialog. Tap {}.",
        "swipe": "Swipe.",
        "home": "Go home.",
        "back": "Go back.",
        "type": "Type {}.",
        "launch": "Launch {}.",
        "finish": "Done.",
    },
    "zh": {
        "tap": "点。",
        "dialog": "有弹窗。点{}。",
        "swipe": "滑动。",
        "home": "回主屏幕。",
        "back": "返回。",
        "type": "输入{}。",
        "launch": "启动{}。",
        "finish": "完成了。",
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
    """Decides for one task."""

    task: Task
    look: Look

    def decide(self, state: PhoneState) -> Decision:
        """The next step."""
        task = self.task
        if state.dialog is not None:
            key = task.key if task.kind == "button" else BUTTON_PAIRS[state.dialog][1]
            return self._tap(key, state)
        if task.kind == "button":
            return self._finish(state)
        if self._is_seen_to_be_reached(state):
            sight = self._sight(task.key, state) if self._is_switch_seen(state) else ""
            if task.then and state.app is not None:
                is_home = task.then == "home"
                thought = sight + self._thought(task.then, state)
                return Decision(thought, Home() if is_home else Back())
            return self._finish(state, sight)
        if task.kind == "launch":
            name = APPS[task.key].in_(state.language)
            return Decision(self._thought("launch", state, APPS[task.key]), Launch(name))
        place = {"switch": SETTINGS, "search": task.app}.get(task.kind, task.key)
        if state.app != place:
            return self._go_to(place, state)
        if task.kind == "switch":
            return self._tap_or_swipe(task.key, state, NEXT_ROWS)
        return self._search(state)

    def _is_seen_to_be_reached(self, state: PhoneState) -> bool:
        """Reached, and visible or done by the agent itself."""
        if not self.task.is_goal_reached(state):
            return False
        if self.task.kind != "switch" or ("set", self.task.key) in state.log:
            return True
        return self._is_switch_seen(state)

    def _is_switch_seen(self, state: PhoneState) -> bool:
        return state.app == SETTINGS and self.task.key in state.pages[state.page]

    def _go_to(self, app: str, state: PhoneState) -> Decision:
        if state.app is not None:
            return Decision(self._thought("home", state), Home())
        return self._tap_or_swipe(app, state, NEXT_PAGE)

    def _tap_or_swipe(self, key: str, state: PhoneState, forth: Swipe) -> Decision:
        """Taps what is on this page, or turns to the other one."""
        if key in state.pages[state.page]:
            return self._tap(key, state)
        swipe = forth if state.page == 0 else Swipe(forth.end, forth.start)
        return Decision(self._sight(key, state) + self._thought("swipe", state), swipe)

    def _search(self, state: PhoneState) -> Decision:
        query = QUERIES[self.task.key]
        words = query.in_(state.language)
        if state.text == words:
            return self._tap("go", state)
        if state.is_focused:
            return Decision(self._thought("type", state, query), Type(words))
        return self._tap("field", state)

    def _tap(self, key: str, state: PhoneState) -> Decision:
        element = next(one for one in layout(state, self.look) if one.key == key)
        if state.dialog is not None:
            thought = self._thought("dialog", state, _ALL[key])
        else:
            thought = self._sight(key, state) + self._thought("tap", state)
        return Decision(thought, Tap(element.center), key)

    def _finish(self, state: PhoneState, sight: str = "") -> Decision:
        thought = sight + self._thought("finish", state)
        return Decision(thought, Finish(self._message(state.language)))

    def _sight(self, key: str, state: PhoneState) -> str:
        shown = {one.key: one for one in layout(state, self.look)}
        return sight_of(_ALL[key], shown.get(key), state.language)

    def _thought(self, kind: str, state: PhoneState, name: Name | None = None) -> str:
        words = name.in_(state.language) if name else ""
        return THOUGHTS[state.language][kind].replace("{}", words)

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


def sight_of(name: Name, element: Element | None, language: Language) -> str:
    """Whether or how the screen shows this: "Wi-Fi: on. ", with the blank that English needs."""
    kind = "absent" if element is None else "here"
    if element is not None and element.is_on is not None:
        kind = "on" if element.is_on else "off"
    text = SIGHTS[language][kind].replace("{}", name.in_(language))
    return f"{text} " if language == "en" else text
