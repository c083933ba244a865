"""The icons of apps and switches: a colour and a simple shape each, drawn with Pillow.

Shapes are lists of strokes in a square of 0 to 1: "ellipse", "box" (filled), "ring" (outline),
"line" and "shape" (a filled polygon), each in white, or in the icon's own colour where "-" leads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hearth.demo_phone.look import Color

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Stroke = tuple[str, tuple[float, ...]]

ICONS: dict[str, tuple[Color, tuple[Stroke, ...]]] = {
    "settings": (
        (96, 104, 116),
        (
            ("line", (0.5, 0.12, 0.5, 0.88)),
            ("line", (0.12, 0.5, 0.88, 0.5)),
            ("line", (0.23, 0.23, 0.77, 0.77)),
            ("line", (0.77, 0.23, 0.23, 0.77)),
            ("ellipse", (0.26, 0.26, 0.74, 0.74)),
            ("-ellipse", (0.4, 0.4, 0.6, 0.6)),
        ),
    ),
    "camera": (
        (60, 60, 66),
        (
            ("box", (0.15, 0.32, 0.85, 0.76)),
            ("box", (0.36, 0.22, 0.64, 0.34)),
            ("-ellipse", (0.36, 0.38, 0.64, 0.7)),
        ),
    ),
    "phone": (
        (38, 166, 74),
        (
            ("shape", (0.2, 0.25, 0.38, 0.2, 0.45, 0.4, 0.36, 0.48, 0.25, 0.5)),
            ("shape", (0.25, 0.44, 0.38, 0.46, 0.54, 0.62, 0.54, 0.76, 0.5, 0.75)),
            ("shape", (0.52, 0.64, 0.6, 0.55, 0.8, 0.62, 0.75, 0.8, 0.5, 0.75)),
        ),
    ),
    "messages": (
        (64, 196, 96),
        (
            ("ellipse", (0.15, 0.2, 0.85, 0.7)),
            ("shape", (0.28, 0.6, 0.5, 0.66, 0.26, 0.86)),
        ),
    ),
    "photos": (
        (236, 120, 150),
        (
            ("ring", (0.15, 0.22, 0.85, 0.78)),
            ("shape", (0.2, 0.74, 0.42, 0.42, 0.56, 0.6, 0.66, 0.5, 0.8, 0.74)),
            ("ellipse", (0.6, 0.28, 0.74, 0.42)),
        ),
    ),
    "music": (
        (216, 48, 80),
        (
            ("ellipse", (0.22, 0.62, 0.44, 0.82)),
            ("ellipse", (0.58, 0.56, 0.8, 0.76)),
            ("line", (0.42, 0.72, 0.42, 0.24)),
            ("line", (0.78, 0.66, 0.78, 0.18)),
            ("line", (0.42, 0.26, 0.78, 0.2)),
        ),
    ),
    "maps": (
        (80, 180, 130),
        (
            ("ellipse", (0.28, 0.14, 0.72, 0.58)),
            ("shape", (0.31, 0.46, 0.69, 0.46, 0.5, 0.88)),
            ("-ellipse", (0.41, 0.27, 0.59, 0.45)),
        ),
    ),
    "clock": (
        (24, 28, 60),
        (
            ("ellipse", (0.15, 0.15, 0.85, 0.85)),
            ("-line", (0.5, 0.5, 0.5, 0.26)),
            ("-line", (0.5, 0.5, 0.68, 0.6)),
        ),
    ),
    "calendar": (
        (228, 76, 60),
        (
            ("box", (0.18, 0.36, 0.82, 0.82)),
            ("box", (0.18, 0.18, 0.82, 0.3)),
            ("-box", (0.3, 0.46, 0.44, 0.58)),
            ("-box", (0.56, 0.46, 0.7, 0.58)),
            ("-box", (0.3, 0.66, 0.44, 0.76)),
        ),
    ),
    "weather": (
        (72, 170, 236),
        (
            ("ellipse", (0.14, 0.46, 0.5, 0.78)),
            ("ellipse", (0.32, 0.3, 0.7, 0.76)),
            ("ellipse", (0.56, 0.48, 0.88, 0.78)),
        ),
    ),
    "notes": (
        (240, 190, 40),
        (
            ("line", (0.2, 0.28, 0.8, 0.28)),
            ("line", (0.2, 0.5, 0.8, 0.5)),
            ("line", (0.2, 0.72, 0.56, 0.72)),
        ),
    ),
    "mail": (
        (50, 110, 226),
        (
            ("box", (0.13, 0.26, 0.87, 0.76)),
            ("-line", (0.13, 0.28, 0.5, 0.56)),
            ("-line", (0.87, 0.28, 0.5, 0.56)),
        ),
    ),
    "browser": (
        (30, 136, 190),
        (
            ("ring", (0.15, 0.15, 0.85, 0.85)),
            ("ring", (0.36, 0.15, 0.64, 0.85)),
            ("line", (0.15, 0.5, 0.85, 0.5)),
        ),
    ),
    "calculator": (
        (244, 140, 40),
        (
            ("box", (0.2, 0.18, 0.8, 0.36)),
            *(("box", (x, y, x + 0.14, y + 0.14)) for x in (0.2, 0.43, 0.66) for y in (0.44, 0.66)),
        ),
    ),
    "contacts": (
        (150, 110, 80),
        (
            ("ellipse", (0.34, 0.16, 0.66, 0.48)),
            ("shape", (0.18, 0.84, 0.24, 0.62, 0.4, 0.54, 0.6, 0.54, 0.76, 0.62, 0.82, 0.84)),
        ),
    ),
    "files": (
        (250, 170, 90),
        (
            ("box", (0.14, 0.34, 0.86, 0.78)),
            ("box", (0.14, 0.22, 0.46, 0.4)),
        ),
    ),
    "store": (
        (110, 80, 220),
        (
            ("box", (0.2, 0.36, 0.8, 0.82)),
            ("ring", (0.36, 0.16, 0.64, 0.56)),
        ),
    ),
    "video": ((196, 30, 40), (("shape", (0.3, 0.2, 0.3, 0.8, 0.82, 0.5)),)),
    "wallet": (
        (120, 70, 40),
        (
            ("box", (0.14, 0.28, 0.86, 0.76)),
            ("-box", (0.58, 0.44, 0.86, 0.6)),
        ),
    ),
    "health": (
        (246, 100, 120),
        (
            ("ellipse", (0.18, 0.22, 0.52, 0.56)),
            ("ellipse", (0.48, 0.22, 0.82, 0.56)),
            ("shape", (0.21, 0.46, 0.79, 0.46, 0.5, 0.84)),
        ),
    ),
    "games": (
        (90, 40, 150),
        (
            ("ellipse", (0.1, 0.32, 0.48, 0.74)),
            ("ellipse", (0.52, 0.32, 0.9, 0.74)),
            ("box", (0.3, 0.34, 0.7, 0.6)),
        ),
    ),
    "books": (
        (0, 128, 128),
        (
            ("shape", (0.12, 0.24, 0.47, 0.32, 0.47, 0.82, 0.12, 0.72)),
            ("shape", (0.88, 0.24, 0.53, 0.32, 0.53, 0.82, 0.88, 0.72)),
        ),
    ),
    "recorder": (
        (170, 40, 130),
        (
            ("box", (0.4, 0.14, 0.6, 0.56)),
            ("ring", (0.28, 0.3, 0.72, 0.7)),
            ("line", (0.5, 0.7, 0.5, 0.88)),
        ),
    ),
    "taxi": (
        (230, 214, 50),
        (
            ("shape", (0.26, 0.48, 0.36, 0.26, 0.64, 0.26, 0.74, 0.48)),
            ("box", (0.12, 0.46, 0.88, 0.68)),
            ("ellipse", (0.2, 0.6, 0.38, 0.8)),
            ("ellipse", (0.62, 0.6, 0.8, 0.8)),
        ),
    ),
}

# The settings' rows have small ones of their own.
SWITCH_ICONS: dict[str, tuple[Color, tuple[Stroke, ...]]] = {
    "wifi": (
        (30, 120, 240),
        (
            ("shape", (0.05, 0.3, 0.95, 0.3, 0.5, 0.9)),
            ("-shape", (0.22, 0.42, 0.78, 0.42, 0.5, 0.8)),
            ("ellipse", (0.38, 0.6, 0.62, 0.84)),
        ),
    ),
    "bluetooth": (
        (20, 60, 160),
        (
            ("line", (0.5, 0.1, 0.5, 0.9)),
            ("line", (0.25, 0.3, 0.75, 0.7)),
            ("line", (0.25, 0.7, 0.75, 0.3)),
        ),
    ),
    "airplane": (
        (250, 150, 30),
        (
            ("shape", (0.5, 0.08, 0.6, 0.4, 0.95, 0.62, 0.05, 0.62, 0.4, 0.4)),
            ("box", (0.43, 0.3, 0.57, 0.88)),
        ),
    ),
    "hotspot": (
        (40, 170, 90),
        (("ring", (0.08, 0.08, 0.92, 0.92)), ("box", (0.38, 0.38, 0.62, 0.62))),
    ),
    "dark": (
        (60, 50, 110),
        (("ellipse", (0.15, 0.15, 0.85, 0.85)), ("-ellipse", (0.4, 0.1, 0.95, 0.65))),
    ),
    "location": (
        (225, 60, 60),
        (("ellipse", (0.25, 0.1, 0.75, 0.6)), ("shape", (0.28, 0.45, 0.72, 0.45, 0.5, 0.95))),
    ),
    "nfc": ((0, 150, 150), (("box", (0.15, 0.15, 0.3, 0.85)), ("box", (0.7, 0.15, 0.85, 0.85)))),
    "quiet": ((130, 60, 200), (("box", (0.12, 0.4, 0.88, 0.6)),)),
    "saver": ((130, 190, 40), (("box", (0.28, 0.2, 0.72, 0.92)), ("box", (0.4, 0.08, 0.6, 0.2)))),
    "rotation": (
        (240, 110, 160),
        (("ring", (0.12, 0.12, 0.88, 0.88)), ("shape", (0.6, 0.05, 0.98, 0.3, 0.6, 0.5))),
    ),
    "torch": (
        (240, 205, 30),
        (
            ("shape", (0.2, 0.1, 0.8, 0.1, 0.62, 0.45, 0.38, 0.45)),
            ("box", (0.38, 0.45, 0.62, 0.92)),
        ),
    ),
    "updates": (
        (110, 110, 110),
        (("shape", (0.5, 0.9, 0.15, 0.5, 0.85, 0.5)), ("box", (0.38, 0.1, 0.62, 0.55))),
    ),
}


def draw_icon(
    draw: ImageDraw, key: str, left: float, top: float, side: float, *, is_round: bool
) -> None:
    """Draws the icon of an app or a switch into the square at (left, top); lengths in pixels."""
    color, strokes = ICONS[key] if key in ICONS else SWITCH_ICONS[key]
    square = (left, top, left + side, top + side)
    if is_round:
        draw.ellipse(square, fill=color)
    else:
        draw.rounded_rectangle(square, side * 0.22, fill=color)
    # Inside a circle the shape is a little smaller.
    margin = side * (0.16 if is_round else 0.08)
    for kind, numbers in strokes:
        inner = side - 2 * margin
        points = [
            (top if i % 2 else left) + margin + value * inner for i, value in enumerate(numbers)
        ]
        ink = color if kind.startswith("-") else (255, 255, 255)
        _stroke(draw, kind.removeprefix("-"), points, ink, max(1, round(side * 0.08)))


def _stroke(draw: ImageDraw, kind: str, points: list[float], ink: Color, width: int) -> None:
    corners: Any = points  # Pillow takes flat sequences of numbers, whatever their length
    match kind:
        case "ellipse":
            draw.ellipse(corners, fill=ink)
        case "box":
            draw.rectangle(corners, fill=ink)
        case "ring":
            draw.ellipse(corners, outline=ink, width=width)
        case "line":
            draw.line(corners, fill=ink, width=width)
        case _:
            draw.polygon(corners, fill=ink)
