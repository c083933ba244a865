"""The phone as a state machine: what is shown, and what each action does to it.

    launcher (pages) ─ tap an icon, Launch → app ─ Back, Home → launcher
    settings = an app with pages of switches; six apps have a search field, a button and results
    a dialog lies over any screen and takes every tap and Back until one of its buttons is tapped

A state is plain data and is changed by `Phone` alone. Everything about it that a task may ask is
in its fields and in `log`, the events in their order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hearth.demo_phone.actions import Action, Back, Home, Launch, Swipe, Tap, Type
from hearth.demo_phone.words import APPS, BUTTON_PAIRS, SEARCH_APPS, SWITCHES, Language

NUM_LAUNCHER_PAGES = 2
NUM_SETTINGS_PAGES = 2
SETTINGS = "settings"


@dataclass(slots=True)
class PhoneState:
    """What the phone knows.

    `app`: the open app, None for the launcher. `page`: of the launcher or of the settings.
    `dialog`: the pair of buttons that lies over the screen, as an index of BUTTON_PAIRS, or None.
    `log`: ("open", app), ("set", switch), ("search", "app query"), ("button", key), ("home", "").
    """

    language: Language
    icons: tuple[str, ...]  # every app, in the launcher's order
    switch_order: tuple[str, ...]
    switches: dict[str, bool]
    app: str | None = None
    page: int = 0
    dialog: int | None = None
    is_focused: bool = False
    text: str = ""
    results: str = ""
    log: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pages(self) -> tuple[tuple[str, ...], ...]:
        """The items of each page of what is open: icons, switches, or none."""
        if self.app is None:
            return _halves(self.icons)
        return _halves(self.switch_order) if self.app == SETTINGS else ((),)


def _halves(items: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


def random_state(language: Language, rng: random.Random) -> PhoneState:
    """A phone at its launcher, with its apps and switches in an order of its own."""
    return PhoneState(
        language=language,
        icons=tuple(rng.sample(sorted(APPS), len(APPS))),
        switch_order=tuple(rng.sample(sorted(SWITCHES), len(SWITCHES))),
        switches={key: rng.random() < 0.5 for key in SWITCHES},
        page=0,
    )


class Phone:
    """Carries out actions on a state.

    A tap says which element it hit (a key of the vocabulary, or None for nothing): the layout
    finds it, see `layout.element_at`.
    """

    def __init__(self, state: PhoneState) -> None:
        self.state = state

    def perform(self, action: Action, hit: str | None = None) -> None:
        """Changes the state as a real phone would; what makes no sense there changes nothing."""
        match action:
            case Tap():
                self._tap(hit)
            case Type(text=text):
                if self.state.is_focused and self.state.dialog is None:
                    self.state.text = text
            case Swipe():
                self._swipe(action)
            case Back() | Home():
                self._leave(isinstance(action, Home))
            case Launch(app=name):
                self._launch(name)

    def _tap(self, hit: str | None) -> None:
        state = self.state
        if state.dialog is not None:
            if hit in BUTTON_PAIRS[state.dialog]:
                state.dialog = None
                state.log.append(("button", str(hit)))
        elif state.app is None:
            if hit in APPS:
                self._open(str(hit))
        elif state.app == SETTINGS:
            if hit in SWITCHES:
                state.switches[str(hit)] = not state.switches[str(hit)]
                state.log.append(("set", str(hit)))
        elif state.app in SEARCH_APPS:
            self._tap_search(hit)

    def _tap_search(self, hit: str | None) -> None:
        state = self.state
        if hit == "field":
            state.is_focused = True
        elif hit == "go" and state.text:
            state.results, state.is_focused = state.text, False
            state.log.append(("search", f"{state.app} {state.text}"))

    def _swipe(self, swipe: Swipe) -> None:
        """To the left or up: the next page; to the right or down: the one before."""
        state = self.state
        if state.dialog is not None or len(state.pages) == 1:
            return
        across = swipe.end[0] - swipe.start[0]
        along = swipe.end[1] - swipe.start[1]
        # Launchers turn pages sideways, lists scroll along.
        way = across if state.app is None else along
        state.page = min(1, state.page + 1) if way < 0 else max(0, state.page - (way > 0))

    def _leave(self, is_home: bool) -> None:
        state = self.state
        if state.dialog is not None and not is_home:
            return
        if is_home or state.app is not None:
            state.log.append(("home", ""))
        if is_home:
            state.dialog = None
        state.app, state.page, state.is_focused = None, 0, False
        state.text = state.results = ""

    def _launch(self, name: str) -> None:
        for app in APPS.values():
            if name.casefold() in (app.en.casefold(), app.zh):
                self.state.dialog = None
                self._open(app.key)

    def _open(self, app: str) -> None:
        state = self.state
        state.app, state.page, state.is_focused = app, 0, False
        state.text = state.results = ""
        state.log.append(("open", app))
