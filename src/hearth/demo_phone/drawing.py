"""Draws a screen as an RGB picture of any size: the phone's state in its look.

The same code draws what the model is trained on and what the demo sends. Text is set in a subset
of WenQuanYi Micro Hei (Apache License 2.0), which lies beside this file.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.demo_phone.icons import ICONS, draw_icon
from hearth.demo_phone.layout import Box, Element, dialog_box, layout, surface
from hearth.demo_phone.look import Color, Look
from hearth.demo_phone.state import SETTINGS, PhoneState
from hearth.demo_phone.words import (
    APPS,
    BUTTON_PAIRS,
    BUTTONS,
    LAUNCHER,
    QUERIES,
    SEARCH_APPS,
    SWITCHES,
    WIDGETS,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

FONT_PATH = Path(__file__).parent / "font.ttf"
WHITE: Color = (255, 255, 255)
ON: Color = (46, 160, 90)
# By the dialog's buttons: what it asks, and the colour of its sign.
DIALOG_TEXTS = {
    "en": (
        ("Save this?", "Turn it on?"),
        ("Share data?", "Use the camera?"),
        ("New version", "Terms"),
    ),
    "zh": (("是否保存?", "是否打开?"), ("分享数据?", "使用相机?"), ("有新版本", "使用条款")),
}
DIALOG_SIGNS: tuple[tuple[str, Color], ...] = (
    ("?", (40, 110, 230)),
    ("!", (240, 130, 20)),
    ("i", (30, 160, 90)),
)


@cache
def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(FONT_PATH), size)


def all_characters() -> str:
    """Every character that a screen can show, sorted; the font holds these and no others."""
    texts = [text for table in DIALOG_TEXTS.values() for pair in table for text in pair]
    for names in (APPS, SWITCHES, BUTTONS, WIDGETS, QUERIES):
        texts += [one.en + one.zh for one in names.values()]
    ascii_characters = "".join(map(chr, range(32, 127)))
    return "".join(sorted({*"".join(texts), *ascii_characters, *LAUNCHER.zh}))


def draw_screen(state: PhoneState, look: Look, width: int, height: int) -> Image:
    """The screen as an RGB picture of this size."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), look.paper)
    canvas = _Canvas(ImageDraw.Draw(image), look, state, width, height)
    if state.app is None:
        canvas.launcher()
    else:
        canvas.header()
        if state.app == SETTINGS:
            canvas.rows()
        elif state.app in SEARCH_APPS:
            canvas.search()
        else:
            canvas.content()
    canvas.status_bar()
    if state.dialog is not None:
        # What lies under a dialog is dimmed, as phones do.
        image.paste(Image.blend(image, Image.new("RGB", image.size), 0.55))
        canvas.dialog()
    return image


@dataclass(slots=True)
class _Canvas:
    """One drawing in progress. Methods take shares of the screen and draw pixels."""

    draw: ImageDraw
    look: Look
    state: PhoneState
    width: int
    height: int

    def _pixels(self, box: Box) -> tuple[float, float, float, float]:
        w, h = self.width, self.height
        return box.left * w, box.top * h, box.right * w, box.bottom * h

    def text(self, words: str, box: Box, ink: Color, size: float, anchor: str = "mm") -> None:
        """Words in the middle of the box ("mm") or at its left ("lm"), not wider than the box."""
        left, top, right, bottom = self._pixels(box)
        font = _font(max(6, round(size)))
        length = font.getlength(words)
        if length > right - left:
            font = _font(max(6, int(size * (right - left) / length)))
        x = left if anchor == "lm" else (left + right) / 2
        self.draw.text((x, (top + bottom) / 2), words, ink, font, anchor=anchor)

    @property
    def unit(self) -> float:
        """A length in pixels that text and icons go by: about a thirteenth of the width."""
        return min(self.width, self.height * 0.52) / 13

    def status_bar(self) -> None:
        """The clock and the battery at the top."""
        rng = random.Random(self.look.seed)
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        ink = self.look.ink
        self.text(clock, Box(0.05, 0.005, 0.3, 0.035), ink, self.unit * 0.75, "lm")
        level = rng.uniform(0.2, 1.0)
        self.draw.rectangle(self._pixels(Box(0.86, 0.012, 0.94, 0.028)), outline=ink)
        self.draw.rectangle(self._pixels(Box(0.86, 0.012, 0.86 + 0.08 * level, 0.028)), fill=ink)

    def launcher(self) -> None:
        """The wallpaper, the icons and the dots of the pages."""
        self._wallpaper()
        elements = surface(self.state, self.look)
        for one in elements:
            self._icon(one)
        # The mark of the open page is long and the other one is short.
        y = 1 - self.look.bottom / 2
        half = 0.018 * self.width / self.height
        is_first = self.state.page == 0
        long = (0.36, 0.5) if is_first else (0.5, 0.64)
        short = (0.53, 0.59) if is_first else (0.41, 0.47)
        for (left, right), ink in ((long, self.look.ink), (short, self.look.faint)):
            mark = self._pixels(Box(left, y - half, right, y + half))
            self.draw.rounded_rectangle(mark, half * self.height, fill=ink)

    def _wallpaper(self) -> None:
        num_bands = 24
        for band in range(num_bands):
            share = band / (num_bands - 1)
            color = tuple(
                round(a + (b - a) * share) for a, b in zip(self.look.wall_from, self.look.wall_to)
            )
            box = Box(0, band / num_bands, 1, (band + 1) / num_bands)
            self.draw.rectangle(self._pixels(box), fill=color)

    def _icon(self, one: Element) -> None:
        left, top, right, bottom = self._pixels(one.box)
        label = self.unit * 1.25
        side = min((right - left) * self.look.icon_share, (bottom - top - label) * 0.86)
        x = (left + right - side) / 2
        y = top + ((bottom - top) - side - label) / 2
        draw_icon(self.draw, one.key, x, y, side, is_round=self.look.is_round)
        words = APPS[one.key].in_(self.state.language)
        box = Box(
            one.box.left,
            (y + side) / self.height,
            one.box.right,
            (y + side + label * 1.1) / self.height,
        )
        self.text(words, box, self.look.ink, self.unit)

    def header(self) -> None:
        """The open app's coloured bar with its icon and name."""
        app = str(self.state.app)
        bar = Box(0, 0.04, 1, 0.11)
        color = ICONS[app][0]
        self.draw.rectangle(self._pixels(bar), fill=color)
        side = 0.055 * self.height
        draw_icon(self.draw, app, 0.05 * self.width, 0.0475 * self.height, side, is_round=False)
        left = 0.08 + side / self.width
        words = APPS[app].in_(self.state.language)
        self.text(words, Box(left, 0.04, 0.95, 0.11), WHITE, self.unit * 1.3, "lm")

    def rows(self) -> None:
        """The switches of the settings, and how far they are scrolled."""
        top = 0.14 if self.state.page == 0 else 0.54
        bar = self._pixels(Box(0.965, top, 0.99, top + 0.4))
        self.draw.rectangle(bar, fill=self.look.faint)
        for one in surface(self.state, self.look):
            box = one.box
            words = SWITCHES[one.key].in_(self.state.language)
            label = Box(0.26, box.top, 0.76, box.bottom)
            self.text(words, label, self.look.ink, self.unit * 1.25, "lm")
            side = 0.72 * (box.bottom - box.top) * self.height
            y = (box.top + box.bottom) / 2 * self.height - side / 2
            is_round = self.look.is_round
            draw_icon(self.draw, one.key, 0.05 * self.width, y, side, is_round=is_round)
            middle, half = (box.top + box.bottom) / 2, 0.035 * self.width / self.height
            track = self._pixels(Box(0.78, middle - half, 0.93, middle + half))
            radius = half * self.height
            self.draw.rounded_rectangle(track, radius, fill=ON if one.is_on else self.look.faint)
            x = track[2] - 2 * radius if one.is_on else track[0]
            inset = radius * 0.2
            self.draw.ellipse(
                (x + inset, track[1] + inset, x + 2 * radius - inset, track[3] - inset), fill=WHITE
            )
            line = (*self._pixels(Box(0.07, box.bottom, 0.93, box.bottom)),)
            self.draw.line(line, fill=self.look.faint, width=max(1, self.width // 400))

    def content(self) -> None:
        """Some blocks that differ from phone to phone; nothing in them can be tapped."""
        rng = random.Random(f"{self.look.seed} {self.state.app}")
        y = 0.15
        while y < 0.9:
            height = rng.uniform(0.03, 0.12)
            box = Box(0.06, y, rng.uniform(0.4, 0.94), y + height)
            share = rng.uniform(0.1, 0.35)
            self.draw.rectangle(self._pixels(box), fill=self._mixed(self.look.accent, share))
            y += height + rng.uniform(0.015, 0.05)

    def _mixed(self, color: Color, share: float) -> Color:
        r, g, b = (round(p + (c - p) * share) for p, c in zip(self.look.paper, color))
        return r, g, b

    def search(self) -> None:
        """A field, its button, and the results or the keyboard."""
        state, look = self.state, self.look
        field, go = surface(state, look)
        edge = look.accent if state.is_focused else look.faint
        pen = max(1, round(self.unit * (0.25 if state.is_focused else 0.1)))
        self.draw.rounded_rectangle(
            self._pixels(field.box), self.unit * 0.5, outline=edge, width=pen
        )
        words = state.text or WIDGETS["field"].in_(state.language)
        ink = look.ink if state.text else look.faint
        self.text(words, field.box.shrunk(0.04, 0), ink, self.unit * 1.1, "lm")
        self._search_button(go.box)
        if state.results:
            self._results(field.box.bottom + 0.03)
        elif state.is_focused:
            self._keyboard()

    def _search_button(self, box: Box) -> None:
        self.draw.rounded_rectangle(self._pixels(box), self.unit * 0.5, fill=self.look.accent)
        left, top, right, bottom = self._pixels(box)
        x, y, r = (left + right) / 2, (top + bottom) / 2, (bottom - top) * 0.2
        pen = max(1, round(self.unit * 0.2))
        self.draw.ellipse(
            (x - r * 1.2, y - r * 1.2, x + r * 0.8, y + r * 0.8), outline=WHITE, width=pen
        )
        self.draw.line((x + r * 0.6, y + r * 0.6, x + r * 1.4, y + r * 1.4), fill=WHITE, width=pen)

    def _results(self, top: float) -> None:
        for number in range(4):
            y = top + number * 0.13
            box = Box(0.05, y, 0.95, y + 0.115)
            self.draw.rectangle(self._pixels(box), fill=self._mixed(self.look.accent, 0.15))
            words = f"{self.state.results} {number + 1}"
            self.text(words, Box(0.1, y, 0.9, y + 0.115), self.look.ink, self.unit * 1.1, "lm")

    def _keyboard(self) -> None:
        self.draw.rectangle(self._pixels(Box(0, 0.7, 1, 1)), fill=self._mixed((128, 128, 140), 0.4))
        for row in range(4):
            for column in range(8):
                x, y = 0.02 + column * 0.121, 0.715 + row * 0.07
                self.draw.rectangle(
                    self._pixels(Box(x, y, x + 0.1, y + 0.055)), fill=self.look.paper
                )

    def dialog(self) -> None:
        """The card over the screen, its question and its two buttons."""
        card = dialog_box(self.look)
        self.draw.rounded_rectangle(self._pixels(card), self.unit, fill=self.look.paper)
        number = self.state.dialog or 0
        words = DIALOG_TEXTS[self.state.language][number][self.look.seed % 2]
        title = Box(card.left + 0.2, card.top + 0.02, card.right - 0.02, card.top + 0.13)
        self.text(words, title, self.look.ink, self.unit * 1.3)
        sign, color = DIALOG_SIGNS[number]
        left, middle = (card.left + 0.04) * self.width, (card.top + 0.075) * self.height
        side = 0.15 * self.width
        self.draw.ellipse((left, middle - side / 2, left + side, middle + side / 2), fill=color)
        circle = Box(card.left + 0.04, card.top + 0.02, card.left + 0.19, card.top + 0.13)
        self.text(sign, circle, WHITE, self.unit * 1.6)
        for one in layout(self.state, self.look):
            is_agreeing = one.key == BUTTON_PAIRS[number][0]
            color = self._mixed(self.look.accent, 0.45) if is_agreeing else self.look.faint
            self.draw.rounded_rectangle(
                self._pixels(one.box.shrunk(0.01, 0.006)), self.unit * 0.5, fill=color
            )
            self.text(
                BUTTONS[one.key].in_(self.state.language), one.box, self.look.ink, self.unit * 1.15
            )
