"""The phone's state machine: what every action does, and what it leaves alone."""

from __future__ import annotations

import pytest
from tests.unit.demo_phone.phones import device

from hearth.demo_phone.actions import NEXT_PAGE, NEXT_ROWS, Back, Home, Launch, Swipe, Tap, Type
from hearth.demo_phone.state import Phone, PhoneState

ANYWHERE = Tap((500, 500))


@pytest.fixture
def state() -> PhoneState:
    return device().state


def test_a_tap_on_an_icon_opens_its_app(state: PhoneState) -> None:
    Phone(state).perform(ANYWHERE, "camera")
    assert (state.app, state.log) == ("camera", [("open", "camera")])


def test_a_tap_on_nothing_changes_nothing(state: PhoneState) -> None:
    Phone(state).perform(ANYWHERE, None)
    assert state.app is None
    assert state.log == []


@pytest.mark.parametrize("action", [Back(), Home()])
def test_back_and_home_lead_to_the_launcher(state: PhoneState, action: Back | Home) -> None:
    phone = Phone(state)
    phone.perform(ANYWHERE, "camera")
    phone.perform(action)
    assert state.app is None
    assert state.log[-1] == ("home", "")


def test_a_launcher_turns_its_pages_sideways_and_settings_scroll_along(state: PhoneState) -> None:
    phone = Phone(state)
    phone.perform(NEXT_ROWS)
    assert state.page == 0
    phone.perform(NEXT_PAGE)
    assert state.page == 1
    phone.perform(Swipe(NEXT_PAGE.end, NEXT_PAGE.start))
    assert state.page == 0
    phone.perform(ANYWHERE, "settings")
    phone.perform(NEXT_PAGE)
    assert state.page == 0
    phone.perform(NEXT_ROWS)
    assert state.page == 1


def test_a_switch_is_turned_by_each_tap(state: PhoneState) -> None:
    phone = Phone(state)
    before = state.switches["wifi"]
    phone.perform(ANYWHERE, "settings")
    phone.perform(ANYWHERE, "wifi")
    assert state.switches["wifi"] is not before
    phone.perform(ANYWHERE, "wifi")
    assert state.switches["wifi"] is before


def test_text_needs_the_focus_and_a_search_needs_a_text(state: PhoneState) -> None:
    phone = Phone(state)
    phone.perform(ANYWHERE, "browser")
    phone.perform(Type("coffee"))
    assert state.text == ""
    phone.perform(ANYWHERE, "go")
    assert state.results == ""
    phone.perform(ANYWHERE, "field")
    phone.perform(Type("coffee"))
    phone.perform(ANYWHERE, "go")
    assert state.results == "coffee"
    assert state.log[-1] == ("search", "browser coffee")


def test_a_dialog_takes_every_tap_until_it_is_answered(state: PhoneState) -> None:
    phone = Phone(state)
    state.dialog = 1
    for action, hit in ((ANYWHERE, "camera"), (NEXT_PAGE, None), (Back(), None)):
        phone.perform(action, hit)
    phone.perform(ANYWHERE, "ok")  # a button of another dialog
    assert (state.app, state.page, state.log) == (None, 0, [])
    phone.perform(ANYWHERE, "deny")
    assert state.log == [("button", "deny")]
    phone.perform(ANYWHERE, "camera")
    assert state.app == "camera"


@pytest.mark.parametrize("name", ["Camera", "camera", "相机"])
def test_launch_knows_an_app_by_either_name(state: PhoneState, name: str) -> None:
    Phone(state).perform(Launch(name))
    assert state.app == "camera"


def test_launching_what_is_not_installed_changes_nothing(state: PhoneState) -> None:
    Phone(state).perform(Launch("Spreadsheet"))
    assert state.app is None
