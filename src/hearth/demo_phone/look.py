"""How one phone looks: its colours and proportions, drawn once from a seed, and its resolutions."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

Color = tuple[int, int, int]

# Width and height in pixels. The second group is never trained on.
RESOLUTIONS = (
    (1080, 2400),
    (720, 1600),
    (1440, 3200),
    (1080, 2340),
    (1080, 1920),
    (828, 1792),
    (1200, 1920),
    (1600, 2560),
)
HELD_OUT_RESOLUTIONS = ((1170, 2532), (1440, 3120), (800, 1280), (900, 1600))


@dataclass(frozen=True, slots=True)
class Look:
    """Colours and proportions of one phone; lengths are shares of the width or the height.

    `top`, `bottom`: free space above and below the launcher's icons. `columns` of the launcher.
    """

    is_dark: bool
    wall_from: Color
    wall_to: Color
    paper: Color
    ink: Color
    faint: Color
    accent: Color
    columns: int
    top: float
    bottom: float
    icon_share: float
    is_round: bool
    row_top: float
    row_height: float
    field_top: float
    dialog_middle: float
    is_stacked: bool
    is_agree_first: bool
    seed: int


def hsv(hue: float, saturation: float, value: float) -> Color:
    """A colour by hue, saturation and value, each 0 to 1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * r), int(255 * g), int(255 * b)


def random_look(rng: random.Random, width: int, height: int) -> Look:
    """A look for a screen of this size."""
    is_dark = rng.random() < 0.4
    hue = rng.random()
    wall_value = rng.uniform(0.15, 0.4) if is_dark else rng.uniform(0.75, 0.97)
    wall_saturation = rng.uniform(0.05, 0.45)
    grey = rng.randint(10, 45) if is_dark else rng.randint(228, 255)
    is_wide = width / height > 0.56
    return Look(
        is_dark=is_dark,
        wall_from=hsv(hue, wall_saturation, wall_value),
        wall_to=hsv(hue + rng.uniform(-0.15, 0.15), wall_saturation, wall_value * 0.85),
        paper=(grey, grey, min(255, grey + rng.randint(0, 8))),
        ink=(238, 238, 238) if is_dark else (24, 24, 28),
        faint=(130, 130, 136) if is_dark else (150, 150, 156),
        accent=hsv(rng.random(), 0.75, 0.8),
        columns=rng.choice((3, 4)) if is_wide else 3,
        top=rng.uniform(0.05, 0.1),
        bottom=rng.uniform(0.05, 0.14),
        icon_share=rng.uniform(0.55, 0.68),
        is_round=rng.random() < 0.3,
        row_top=rng.uniform(0.12, 0.17),
        row_height=rng.uniform(0.105, 0.13),
        field_top=rng.uniform(0.15, 0.26),
        dialog_middle=rng.uniform(0.4, 0.6),
        is_stacked=rng.random() < 0.3,
        is_agree_first=rng.random() < 0.5,
        seed=rng.randrange(1 << 30),
    )
