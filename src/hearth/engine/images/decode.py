"""From the bytes of a file to RGB pixels at the size that the model's processor chooses.

Equal to transformers' processors (PIL backend) in every uint8: transparency is laid over white, a
palette and grey become RGB, then Pillow resizes with its bicubic filter. Two things differ from
them on purpose: EXIF orientation is applied (as transformers does where it loads an image itself),
so that the model sees a photo upright; and of 16-bit grey the high byte is taken, as Pillow does
for 16-bit colours, where its own conversion clips to 8 bits and leaves a white image.

    bytes ─ read_header (size, no pixels) ─ decode_rgb ─ resized_pixels ─▶ bytes, row by row

Pillow is imported here, when the first image comes; it gives the interpreter's lock up while it
decodes and resizes. What a file says of itself is checked before its pixels are decoded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from hearth.core.errors import RequestError
from hearth.engine.images.resize import Size

if TYPE_CHECKING:
    from PIL import Image, ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PERMITTED = "PNG, JPEG, WebP, GIF, BMP"
MEDIA_TYPES = {
    "PNG": ("image/png",),
    "JPEG": ("image/jpeg", "image/jpg"),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "BMP": ("image/bmp", "image/x-ms-bmp"),
}
# Pillow warns from so many on (Image.MAX_IMAGE_PIXELS).
MAX_PIXELS = 89_478_485
# While it decodes: RGBA and RGB.
BYTES_PER_PIXEL = 7
# Two images of up to so many pixels are decoded at a time, and one of more, where there is memory.
LARGE_PIXELS = 16 << 20
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP_PIXELS = 1 << 20  # laid over white at a time
# What Pillow's readers raise for damaged files, besides its own errors, which are of these kinds.
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    EOFError,
    struct.error,
    zlib.error,
    Warning,  # with `python -W error`
)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """A file that says that it is an image: its format, one of FORMATS, and the size it names."""

    file: ImageFile.ImageFile
    format: str
    size: Size
    is_animated: bool


def read_header(
    data: bytes, *, max_pixels: int = MAX_PIXELS, may_quote: bool = False
) -> ImageHeader:
    """Looks at what the file says of itself; decodes nothing.

    `may_quote`: the error may repeat the first bytes of what is no image; they are the client's
    own. Raises RequestError for what is no image of a permitted format and what is too large.
    """
    if not data:
        raise RequestError(f"the image is empty, 0 bytes (permitted: {PERMITTED})")
    from PIL import Image

    _register()
    try:
        file = Image.open(BytesIO(data), formats=FORMATS)
        width, height = file.size
    except _FAULTS as error:
        raise RequestError(
            f"the image cannot be read: it is {_kind_of(data, may_quote)} (permitted: {PERMITTED})",
            hint="send the bytes of an image file, not a description of it",
        ) from error
    size = Size(height, width)
    if size.num_pixels > max_pixels:
        raise RequestError(
            f"the image has {size} pixels, {size.num_pixels:,} in all (permitted: {max_pixels:,})",
            hint="send it smaller; the model gets a smaller one anyway",
        )
    kind = "JPEG" if file.format == "MPO" else str(file.format)
    return ImageHeader(file, kind, size, kind != "JPEG" and _is_animated(file))


def decode_rgb(header: ImageHeader) -> Image.Image:
    """The first picture of the file, upright, in RGB, over white where it is transparent.

    Raises RequestError for a file that is damaged or cut off, MemoryError.
    """
    try:
        file = header.file
        file.load()
        rgb = _over_white(_eight_bits(file))
        return _upright(file, rgb)
    except _FAULTS as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise RequestError(
            f"the {header.format} image is damaged or cut off: {why}",
            hint="send the whole file as it is",
        ) from error


def resized_pixels(rgb: Image.Image, size: Size) -> bytes:
    """The picture at this size, bicubic: rows of pixels of three bytes, red, green, blue."""
    from PIL import Image

    return rgb.resize((size.width, size.height), Image.Resampling.BICUBIC).tobytes()


def size_of(rgb: Image.Image) -> Size:
    """The picture's size, with its orientation applied."""
    return Size(rgb.height, rgb.width)


def _register() -> None:
    """Loads the readers of the permitted formats; for a missing one Pillow would load all it has.

    MAX_PIXELS takes the place of Pillow's own limit, which warns on stderr before it refuses.
    """
    from PIL import (  # noqa: F401 -- they register themselves
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        PngImagePlugin,
        WebPImagePlugin,
    )

    Image.MAX_IMAGE_PIXELS = None


def _is_animated(file: ImageFile.ImageFile) -> bool:
    """Whether there are more pictures behind the first; of a file damaged there: no."""
    try:
        return bool(getattr(file, "is_animated", False))
    except _FAULTS:
        return False


def _eight_bits(file: Image.Image) -> Image.Image:
    """Of 16-bit grey the high bytes, and a transparent grey as alpha; all else as it is."""
    from PIL import Image

    if not file.mode.startswith("I;16"):
        return file
    raw = file.tobytes()
    is_big_endian = file.mode == "I;16B"
    grey = Image.frombytes("L", file.size, raw[0 if is_big_endian else 1 :: 2])
    transparent = file.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    import numpy as np

    values = np.frombuffer(raw, ">u2" if is_big_endian else "<u2")
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.frombytes("L", file.size, alpha.tobytes())))


def _over_white(image: Image.Image) -> Image.Image:
    """RGB, as transformers' `convert_to_rgb`: transparency shows a white ground.

    In strips, so that a large image needs one picture of RGBA and one of RGB and no third; an
    opaque one (a screenshot has an alpha channel without a use) needs no blending.
    """
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    rgb = Image.new("RGB", rgba.size)
    num_rows = max(1, _STRIP_PIXELS // rgba.width)
    for top in range(0, rgba.height, num_rows):
        box = (0, top, rgba.width, min(rgba.height, top + num_rows))
        strip = rgba.crop(box)
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return rgb


def _upright(file: ImageFile.ImageFile, rgb: Image.Image) -> Image.Image:
    """Turned and mirrored as the file's EXIF says; damaged EXIF says nothing."""
    from PIL import Image

    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except _FAULTS:
        return rgb
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


_SIGNATURES = (
    (b"\x89PNG", "a PNG file whose header is damaged or names no size"),
    (b"\xff\xd8\xff", "a JPEG file whose header is damaged or names no size"),
    (b"GIF8", "a GIF file whose header is damaged or names no size"),
    (b"RIFF", "a WebP, WAV or AVI file whose header cannot be read"),
    (b"BM", "a BMP file whose header is damaged or names no size"),
    (b"%PDF", "a PDF"),
    (b"II*\x00", "a TIFF file"),
    (b"MM\x00*", "a TIFF file"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
)


def _kind_of(data: bytes, may_quote: bool) -> str:
    """What the bytes look like, for a message."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[4:8] == b"ftyp":
        return "an HEIC, AVIF or MP4 file"
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    start = data[:24].decode("ascii", "replace")
    if start.isprintable() and start.isascii():
        return f"text that begins with {start!r}" if may_quote else "text"
    begin = f" that begin with {data[:8].hex(' ')}" if may_quote else ""
    return f"{len(data):,} bytes{begin} of no known kind"
