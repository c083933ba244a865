"""Files of every kind become upright RGB pictures, or an error that says what came."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tests.unit.images.samples import SVG, encoded, picture, png, png_header

from hearth.core.errors import RequestError
from hearth.engine.images import decode
from hearth.engine.images.decode import MAX_PIXELS, decode_rgb, read_header, size_of
from hearth.engine.images.resize import Size


def decoded(data: bytes) -> Any:
    return np.asarray(decode_rgb(read_header(data)))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_stands_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture(50, 30), kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert np.array_equal(decoded(data), np.asarray(expected))
    turned = orientation in (5, 6, 7, 8)
    assert size_of(decode_rgb(read_header(data))) == (Size(50, 30) if turned else Size(30, 50))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_stand_in_the_way() -> None:
    data = encoded(picture(20, 10), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decoded(data).shape == (10, 20, 3)


def test_an_alpha_channel_without_a_use_changes_nothing() -> None:
    image = picture(40, 30)
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(decoded(encoded(opaque)), np.asarray(image))


def test_transparency_shows_white_whatever_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(40, 33, "RGBA")
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(ground, image).convert("RGB"))
    for pixels in (1, 100, 1 << 20):
        monkeypatch.setattr(decode, "_STRIP_PIXELS", pixels)
        assert np.array_equal(decoded(encoded(image)), expected)


def test_of_sixteen_bits_of_grey_the_high_ones_are_taken() -> None:
    values = np.array([[0, 255, 256, 1000, 32768, 65535]], np.uint16)
    grey = Image.fromarray(values)
    assert decoded(encoded(grey))[0, :, 0].tolist() == [0, 0, 1, 3, 128, 255]
    marked = encoded(grey, transparency=1000)
    assert decoded(marked)[0, :, 1].tolist() == [0, 0, 1, 255, 128, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_picture_of_an_animation_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    data = encoded(first, kind, save_all=True, append_images=[second], duration=50)
    header = read_header(data)
    assert header.is_animated
    assert header.format == kind
    assert np.asarray(decode_rgb(header))[5, 5].tolist()[2] < 10


def test_a_photo_with_a_preview_in_it_is_no_animation() -> None:
    data = encoded(picture(20, 10), "MPO", save_all=True, append_images=[picture(20, 10, seed=1)])
    header = read_header(data)
    assert (header.format, header.is_animated) == ("JPEG", False)


def test_the_largest_picture_is_bounded_by_what_its_header_says() -> None:
    for width, height in [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)]:
        with pytest.raises(RequestError, match=r"pixels, [0-9,]+ in all \(permitted: 89,478,485"):
            read_header(png_header(width, height))
    assert read_header(png_header(MAX_PIXELS, 1)).size.num_pixels == MAX_PIXELS
    with pytest.raises(RequestError, match="permitted: 99"):
        read_header(png(10, 10), max_pixels=99)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty, 0 bytes"),
        (SVG, "an SVG drawing"),
        (b"  <svg width='1'></svg>", "an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"%PDF-1.7", "a PDF"),
        (encoded(picture(4, 4), "TIFF"), "a TIFF file"),
        (encoded(picture(16, 16), "ICO"), "an icon"),
        (b"\0\0\0\x18ftypheic", "HEIC, AVIF or MP4"),
        (b"hello, I am a picture", "text that begins with 'hello, I am a picture'"),
        (bytes(range(200, 230)), "30 bytes that begin with c8 c9"),
        (png_header(0, 0), "a PNG file whose header is damaged or names no size"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "a PNG file whose header is damaged"),
        (b"GIF89a", "a GIF file whose header is damaged"),
        (b"\xff\xd8\xff\xe0", "a JPEG file whose header is damaged"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_image_is_named(data: bytes, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_header(data, may_quote=True)
    assert said in caught.value.message
    assert "permitted: PNG, JPEG, WebP, GIF, BMP" in caught.value.message


@pytest.mark.parametrize("data", [b"root:x:0:0:secret", b"\x01\x02secret\xff"])
def test_what_is_not_the_client_s_own_is_not_repeated(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_header(data)
    shown = str(caught.value)
    assert "secret" not in shown
    assert data[:4].hex(" ") not in shown


FILES = {
    kind: encoded(picture(60, 40, "RGBA" if kind in ("PNG", "WEBP") else "RGB"), kind)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
}


def refusal(data: bytes) -> str:
    """What is said of these bytes; empty: they are a picture."""
    try:
        assert decoded(data).shape[2] == 3
    except RequestError as error:
        return error.message
    return ""


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_is_refused_at_every_length(kind: str) -> None:
    data = FILES[kind]
    lengths = range(0, len(data), max(1, len(data) // 60))
    messages = [message for length in lengths if (message := refusal(data[:length]))]
    assert len(messages) > 50  # a trailer may be missing, pixels may not
    assert max(map(len, messages)) < 300


def test_a_truncated_png_says_so() -> None:
    with pytest.raises(RequestError, match=r"the PNG image is damaged or cut off: .*truncated"):
        decoded(FILES["PNG"][:2000])


@given(
    kind=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of the damage
def test_a_damaged_file_is_a_picture_or_an_error_and_nothing_else(
    kind: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    message = refusal(bytes(data))
    assert not message or "permitted" in message or "damaged" in message


@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"]))
@pytest.mark.filterwarnings("ignore")
def test_no_bytes_lead_to_another_error(data: bytes, prefix: bytes) -> None:
    assert refusal(prefix + data) or prefix
