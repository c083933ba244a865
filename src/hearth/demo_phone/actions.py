"""The actions of a phone agent, and how they are written in an answer.

Coordinates are relative, 0 to 999 of the width and of the height, as [x, y]. Written forms:
`do(action="Tap", element=[x, y])`, `do(action="Type", text="…")`,
`do(action="Swipe", start=[x, y], end=[x, y])`, `do(action="Back")`, `do(action="Home")`,
`do(action="Launch", app="…")` and `finish(message="…")`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_COORDINATE = 999
Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tap:
    """Touches one point."""

    at: Point

    def __str__(self) -> str:
        return f'do(action="Tap", element=[{self.at[0]}, {self.at[1]}])'


@dataclass(frozen=True, slots=True)
class Type:
    """Writes into the field that has the focus, in place of what is there."""

    text: str

    def __str__(self) -> str:
        return f'do(action="Type", text="{self.text}")'


@dataclass(frozen=True, slots=True)
class Swipe:
    """Moves a finger over the screen."""

    start: Point
    end: Point

    def __str__(self) -> str:
        (a, b), (c, d) = self.start, self.end
        return f'do(action="Swipe", start=[{a}, {b}], end=[{c}, {d}])'


@dataclass(frozen=True, slots=True)
class Back:
    """The system's way back."""

    def __str__(self) -> str:
        return 'do(action="Back")'


@dataclass(frozen=True, slots=True)
class Home:
    """The system's way to the launcher."""

    def __str__(self) -> str:
        return 'do(action="Home")'


@dataclass(frozen=True, slots=True)
class Launch:
    """Opens an app by its name."""

    app: str

    def __str__(self) -> str:
        return f'do(action="Launch", app="{self.app}")'


@dataclass(frozen=True, slots=True)
class Finish:
    """The task is over."""

    message: str

    def __str__(self) -> str:
        return f'finish(message="{self.message}")'


Action = Tap | Type | Swipe | Back | Home | Launch | Finish

NEXT_PAGE = Swipe((800, 500), (200, 500))
NEXT_ROWS = Swipe((500, 800), (500, 300))
