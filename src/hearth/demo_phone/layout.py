"""Where things are on a screen: a pure function of the phone's state and its look.

Boxes are shares of the width and the height, 0 to 1. Elements are what a tap can hit and what a
drawing shows; under a dialog only its buttons are elements.
"""

from __future__ import annotations

from dataclasses import dataclass

from hearth.demo_phone.actions import MAX_COORDINATE, Point
from hearth.demo_phone.look import Look
from hearth.demo_phone.state import SETTINGS, PhoneState
from hearth.demo_phone.words import BUTTON_PAIRS, SEARCH_APPS

# From the top of the field to its bottom, and of a dialog's button.
FIELD_HEIGHT = 0.075
BUTTON_HEIGHT = 0.075
DIALOG_LEFT, DIALOG_RIGHT = 0.08, 0.92


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in shares of the screen."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies inside."""
        return self.left <= x < self.right and self.top <= y < self.bottom

    def shrunk(self, across: float, along: float) -> Box:
        """Without these margins."""
        return Box(self.left + across, self.top + along, self.right - across, self.bottom - along)


@dataclass(frozen=True, slots=True)
class Element:
    """Something that can be tapped. `is_on` is of switches alone."""

    key: str
    box: Box
    is_on: bool | None = None

    @property
    def center(self) -> Point:
        """The middle, in the agent's coordinates."""
        box = self.box
        return (
            round((box.left + box.right) / 2 * MAX_COORDINATE),
            round((box.top + box.bottom) / 2 * MAX_COORDINATE),
        )


def layout(state: PhoneState, look: Look) -> tuple[Element, ...]:
    """Every element that a tap can hit now."""
    if state.dialog is not None:
        return _dialog(state.dialog, look)
    return surface(state, look)


def surface(state: PhoneState, look: Look) -> tuple[Element, ...]:
    """The elements of the screen itself, whatever dialog lies over it."""
    if state.app is None:
        return _launcher(state.pages[state.page], look)
    if state.app == SETTINGS:
        return _rows(state, look)
    return _search(look) if state.app in SEARCH_APPS else ()


def element_at(elements: tuple[Element, ...], at: Point) -> Element | None:
    """What a tap there hits."""
    x, y = (share / MAX_COORDINATE for share in at)
    return next((one for one in elements if one.box.holds(x, y)), None)


def dialog_box(look: Look) -> Box:
    """The card of a dialog."""
    half = 0.19 if look.is_stacked else 0.15
    return Box(DIALOG_LEFT, look.dialog_middle - half, DIALOG_RIGHT, look.dialog_middle + half)


def _launcher(icons: tuple[str, ...], look: Look) -> tuple[Element, ...]:
    num_rows = -(-len(icons) // look.columns)
    width = 0.96 / look.columns
    height = (1 - look.top - look.bottom) / num_rows
    elements = []
    for place, key in enumerate(icons):
        row, column = divmod(place, look.columns)
        left, top = 0.02 + column * width, look.top + row * height
        elements.append(Element(key, Box(left, top, left + width, top + height)))
    return tuple(elements)


def _rows(state: PhoneState, look: Look) -> tuple[Element, ...]:
    elements = []
    for place, key in enumerate(state.pages[state.page]):
        top = look.row_top + place * look.row_height
        box = Box(0.03, top, 0.97, top + look.row_height)
        elements.append(Element(key, box, state.switches[key]))
    return tuple(elements)


def _search(look: Look) -> tuple[Element, ...]:
    top, bottom = look.field_top, look.field_top + FIELD_HEIGHT
    return Element("field", Box(0.04, top, 0.74, bottom)), Element(
        "go", Box(0.76, top, 0.96, bottom)
    )


def _dialog(number: int, look: Look) -> tuple[Element, ...]:
    card = dialog_box(look)
    agree, leave = BUTTON_PAIRS[number]
    keys = (agree, leave) if look.is_agree_first else (leave, agree)
    if look.is_stacked:
        top = card.bottom - 2 * BUTTON_HEIGHT - 0.02
        boxes = [
            Box(0.12, top + i * BUTTON_HEIGHT, 0.88, top + (i + 1) * BUTTON_HEIGHT)
            for i in range(2)
        ]
    else:
        top = card.bottom - BUTTON_HEIGHT - 0.02
        boxes = [Box(0.1, top, 0.49, top + BUTTON_HEIGHT), Box(0.51, top, 0.9, top + BUTTON_HEIGHT)]
    return tuple(Element(key, box) for key, box in zip(keys, boxes))
