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
from collections.abc import Iterator
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
# What an image may take while it is decoded and resized, of which two at a time are; of one that
# takes more ("large") one at a time, where there is memory. A screenshot in 4K is not large.
SMALL_BYTES = 160 << 20
# Bytes a pixel while a file is decoded, and of strips and buffers whatever its size; measured with
# Pillow 13.0 (tests/unit/images/test_memory.py): WebP 16.5 and its file once more, JPEG 10.1
# (progressive; its coefficients are kept whole), of four colours 12.1, RGBA and RGB 8.3.
_DECODE_BYTES = {"WEBP": 17, "JPEG": 11, "CMYK": 13}
_OTHER_DECODE_BYTES = 9
_FIXED_BYTES = 2 << 20
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP_PIXELS = 1 << 16  # that are converted at a time
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


@dataclass(slots=True)
class ImageHeader:
    """A file that says that it is an image: its format, one of FORMATS, and the size it names.

    `decode_bytes`: of memory while it is decoded, at most, beside the file's own.
    """

    format: str
    size: Size
    is_animated: bool
    decode_bytes: int
    file: ImageFile.ImageFile | None  # None: decoded

    def take_file(self) -> ImageFile.ImageFile:
        """The file, once: when nobody else keeps it, what it was decoded with can go early."""
        file, self.file = self.file, None
        assert file is not None, "an image is decoded once"
        return file

    def needed_bytes(self, resized: Size) -> int:
        """Of memory while it is decoded and resized to this size, at most.

        Bicubic resizing goes through a picture of the new width and the old height (of an image
        that is turned on its side, the other way round); the bytes are gathered in pieces.
        """
        across = max(resized.width * self.size.height, resized.height * self.size.width)
        resizing = max(4 * across + 4 * resized.num_pixels, 10 * resized.num_pixels)
        return max(self.decode_bytes, 4 * self.size.num_pixels + resizing + _FIXED_BYTES)


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
    is_animated = kind != "JPEG" and _is_animated(file)
    return ImageHeader(kind, size, is_animated, _decode_bytes(file, kind, len(data)), file)


def decode_rgb(header: ImageHeader) -> Image.Image:
    """The first picture of the file, upright, in RGB, over white where it is transparent.

    Takes the header's file. Raises RequestError for a file that is damaged or cut off, MemoryError.
    """
    try:
        file: Image.Image = header.take_file()
        file.load()
        turn = _turn_of(file)
        if header.format == "WEBP":  # its decoder keeps two pictures of RGBA as long as the file
            file = file.copy()
        rgb = _over_white(_eight_bits(file))
        del file
        return rgb if turn is None else rgb.transpose(turn)
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


def _decode_bytes(file: Image.Image, kind: str, num_file_bytes: int) -> int:
    """See ImageHeader."""
    of_pixel = _DECODE_BYTES.get("CMYK" if file.mode == "CMYK" else kind, _OTHER_DECODE_BYTES)
    of_file = num_file_bytes if kind == "WEBP" else 0
    return file.width * file.height * of_pixel + of_file + _FIXED_BYTES


def _is_animated(file: ImageFile.ImageFile) -> bool:
    """Whether there are more pictures behind the first; of a file damaged there: no."""
    try:
        return bool(getattr(file, "is_animated", False))
    except _FAULTS:
        return False


def _eight_bits(file: Image.Image) -> Image.Image:
    """Of 16-bit grey the high bytes, white where it is transparent; all else as it is."""
    if not file.mode.startswith("I;16"):
        return file
    import numpy as np
    from PIL import Image

    transparent = file.info.get("transparency")
    grey = Image.new("L", file.size)
    for box in _strips(file):
        values = np.asarray(file.crop(box))
        high = (values >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            high[values == transparent] = 255
        grey.paste(Image.fromarray(high), box)
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    """RGB, as transformers' `convert_to_rgb`: transparency shows a white ground.

    In strips, so that no large image is held in RGBA beside its own pixels and those in RGB; an
    opaque one (a screenshot has an alpha channel without a use) needs no blending.
    """
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for box in _strips(image):
        strip = image.crop(box).convert("RGBA")
        if strip.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            strip = Image.alpha_composite(white, strip)
        rgb.paste(strip.convert("RGB"), box)
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that make up the image, the topmost first."""
    num_rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        yield 0, top, image.width, min(image.height, top + num_rows)


def _turn_of(file: Image.Image) -> Image.Transpose | None:
    """How the file's EXIF says that it is to be turned and mirrored; damaged EXIF says nothing."""
    from PIL import Image

    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except _FAULTS:
        return None
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return turns.get(orientation) if isinstance(orientation, int) else None


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
