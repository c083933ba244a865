"""Drawings: the same from the same seed, different where the state differs, complete in glyphs."""

from __future__ import annotations

import random

import pytest
from tests.unit.demo_phone.phones import HEIGHT, WIDTH, device

from hearth.demo_phone.actions import Finish, Swipe, Tap
from hearth.demo_phone.drawing import FONT_PATH, all_characters, draw_screen
from hearth.demo_phone.icons import ICONS
from hearth.demo_phone.layout import element_at, layout
from hearth.demo_phone.look import HELD_OUT_RESOLUTIONS, RESOLUTIONS, random_look
from hearth.demo_phone.session import Device
from hearth.demo_phone.show import half_blocks, marked
from hearth.demo_phone.words import APPS, BUTTON_PAIRS


def pixels(phone: Device) -> bytes:
    return draw_screen(phone.state, phone.look, phone.width, phone.height).tobytes()


def test_a_seed_gives_the_same_picture_every_time() -> None:
    assert pixels(device(3)) == pixels(device(3))
    assert pixels(device(3)) != pixels(device(4))


def test_what_the_state_says_can_be_seen() -> None:
    phone = device()
    seen = {pixels(phone)}
    phone.state.page = 1
    seen.add(pixels(phone))
    phone.state.dialog = 0
    seen.add(pixels(phone))
    phone.state.dialog, phone.state.app, phone.state.page = None, "settings", 0
    seen.add(pixels(phone))
    phone.state.switches[phone.state.switch_order[0]] ^= True
    seen.add(pixels(phone))
    phone.state.app = "maps"
    seen.add(pixels(phone))
    phone.state.is_focused = True
    seen.add(pixels(phone))
    phone.state.text = "coffee"
    seen.add(pixels(phone))
    phone.state.results = "coffee"
    seen.add(pixels(phone))
    assert len(seen) == 9


def test_every_app_has_an_icon() -> None:
    assert set(ICONS) == set(APPS)


def test_the_font_has_a_glyph_for_every_character_and_is_small() -> None:
    from PIL import ImageFont

    assert FONT_PATH.stat().st_size < 300_000
    font = ImageFont.truetype(str(FONT_PATH), 32)
    missing = font.getmask("\U0001f600").getbbox(), bytes(font.getmask("\U0001f600"))
    for character in all_characters().replace(" ", ""):
        mask = font.getmask(character)
        assert (mask.getbbox(), bytes(mask)) != missing, character


@pytest.mark.parametrize("size", [*RESOLUTIONS, *HELD_OUT_RESOLUTIONS])
def test_elements_lie_on_the_screen_and_apart(size: tuple[int, int]) -> None:
    for seed in range(20):
        phone = device(seed)
        look = random_look(random.Random(seed), *size)
        for app, dialog in ((None, None), ("settings", None), ("maps", None), (None, seed % 3)):
            phone.state.app, phone.state.dialog = app, dialog
            elements = layout(phone.state, look)
            assert elements
            for one in elements:
                assert 0 <= one.box.left < one.box.right <= 1
                assert 0 <= one.box.top < one.box.bottom <= 1
                assert element_at(elements, one.center) is one


def test_under_a_dialog_only_its_buttons_can_be_hit() -> None:
    phone = device()
    phone.state.dialog = 2
    assert {one.key for one in layout(phone.state, phone.look)} == set(BUTTON_PAIRS[2])


def test_a_screenshot_has_an_alpha_channel() -> None:
    shot = device().screenshot()
    assert (shot.mode, shot.size) == ("RGBA", (WIDTH, HEIGHT))


def test_a_tap_is_marked_where_it_went_and_the_screenshot_stays() -> None:
    shot = device().screenshot()
    before = shot.tobytes()
    picture = marked(shot, Tap((500, 250)))
    assert shot.tobytes() == before
    assert picture.tobytes() != before
    x, y = WIDTH // 2, HEIGHT // 4
    far = (0, HEIGHT // 2, WIDTH, HEIGHT)
    near = (x - 20, y - 20, x + 20, y + 20)
    assert picture.crop(far).tobytes() == shot.crop(far).tobytes()
    assert picture.crop(near).tobytes() != shot.crop(near).tobytes()
    assert marked(shot, Swipe((800, 500), (200, 500))).tobytes() != before
    assert marked(shot, Finish("")).tobytes() == before


def test_half_blocks_have_two_pixels_a_character() -> None:
    text = half_blocks(device().screenshot(), 20)
    lines = text.split("\n")
    assert {line.count("▀") for line in lines} == {20}
    assert len(lines) == round(HEIGHT / WIDTH * 20) // 2
