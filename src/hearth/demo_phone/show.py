"""Shows steps to a person: pictures with the tap marked, and screens drawn in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hearth.demo_phone.actions import MAX_COORDINATE, Action, Point, Swipe, Tap

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = (255, 40, 40, 255)


def marked(screenshot: Image, action: Action) -> Image:
    """A copy of the screenshot on which a tap is a ring and a swipe is an arrow."""
    from PIL import ImageDraw

    picture = screenshot.copy()
    draw = ImageDraw.Draw(picture)
    radius = picture.width / 18
    pen = max(2, picture.width // 120)
    if isinstance(action, Tap):
        x, y = _pixel(action.at, picture)
        for share in (1.0, 0.25):
            r = radius * share
            draw.ellipse((x - r, y - r, x + r, y + r), outline=MARK, width=pen)
    elif isinstance(action, Swipe):
        start, end = _pixel(action.start, picture), _pixel(action.end, picture)
        draw.line((*start, *end), fill=MARK, width=pen)
        r = radius * 0.5
        draw.ellipse((end[0] - r, end[1] - r, end[0] + r, end[1] + r), fill=MARK)
    return picture


def _pixel(at: Point, picture: Image) -> tuple[float, float]:
    return at[0] / MAX_COORDINATE * picture.width, at[1] / MAX_COORDINATE * picture.height


def half_blocks(picture: Image, num_columns: int) -> str:
    """The picture as lines of "▀", two pixels a character, in 24-bit terminal colours."""
    num_rows = max(2, round(picture.height / picture.width * num_columns) // 2 * 2)
    small = picture.convert("RGB").resize((num_columns, num_rows))
    lines = []
    for row in range(0, num_rows, 2):
        cells = []
        for column in range(num_columns):
            upper, lower = (_rgb(small.getpixel((column, row + i))) for i in range(2))
            cells.append(f"\033[38;2;{upper}m\033[48;2;{lower}m▀")
        lines.append("".join(cells) + "\033[0m")
    return "\n".join(lines)


def _rgb(pixel: object) -> str:
    if not isinstance(pixel, tuple):
        raise TypeError(f"a pixel of an RGB picture is three numbers, not {pixel!r}")
    return ";".join(str(part) for part in pixel)
