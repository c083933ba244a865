"""What decoding takes of memory, measured in a process of its own, and the bounds that say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.unit.images.samples import GLM4V, encoded, picture

from hearth.engine.images import decode
from hearth.engine.images.resize import Size, resized_size

WIDTH, HEIGHT = 2000, 1500

# Prints for each file how much more memory decoding and resizing took at its peak, and the bound.
# Allocations of 64 KiB or more are maps of their own, so that freed ones do not hide later ones.
CHILD = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy
from PIL import Image
from hearth.engine.images import decode
from hearth.engine.images.resize import Size

def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def measured(path, height, width):
    data = Path(path).read_bytes()
    size = Size(height, width)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    header = decode.read_header(data)
    bound = header.needed_bytes(size)
    pixels = decode.resized_pixels(decode.decode_rgb(header), size)
    return field("VmHWM") - before, bound

files = json.loads(sys.argv[1])
measured(*files[0])  # what is imported and kept with the first one
print(json.dumps([measured(*file) for file in files]))
"""


def files() -> dict[str, bytes]:
    """A picture of every format and of every kind of pixels that decoding treats in its own way."""
    rgba = picture(WIDTH // 4, HEIGHT // 4, "RGBA").resize((WIDTH, HEIGHT))
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    opaque = rgb.convert("RGBA")
    palette = rgb.quantize(64, dither=Image.Dither.NONE)
    deep = grey.convert("I;16")
    upside = Image.Exif()
    upside[0x0112] = 6
    fast: dict[str, Any] = {"compress_level": 1}
    progressive: dict[str, Any] = {"progressive": True, "subsampling": 0}
    lossless: dict[str, Any] = {"lossless": True, "method": 0, "quality": 0}
    return {
        "RGB.png": encoded(rgb, **fast),
        "RGBA.png": encoded(rgba, **fast),
        "opaque.png": encoded(opaque, **fast),
        "LA.png": encoded(rgba.convert("LA"), **fast),
        "palette.png": encoded(palette, **fast, transparency=bytes(range(64))),
        "deep.png": encoded(deep, **fast, transparency=100),
        "plain.jpg": encoded(rgb, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", **progressive, exif=upside),
        "CMYK.jpg": encoded(rgb.convert("CMYK"), "JPEG", **progressive),
        "lossy.webp": encoded(rgb, "WEBP", method=0),
        "RGBA.webp": encoded(rgba, "WEBP", **lossless, exif=upside),
        "palette.gif": encoded(palette, "GIF", transparency=3),
        "RGB.bmp": encoded(rgb, "BMP"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own high-water mark")
def test_decoding_and_resizing_take_no_more_than_their_bound(tmp_path: Path) -> None:
    found = files()
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    small, large = Size(28, 28), resized_size(Size(HEIGHT, WIDTH), GLM4V)
    assert large.num_pixels > 0.9 * WIDTH * HEIGHT
    turned = Size(large.width, large.height)
    asked = [(name, small) for name in found]
    asked += [("RGB.png", large), ("progressive.jpg", turned), ("lossy.webp", large)]
    given = [(str(tmp_path / name), size.height, size.width) for name, size in asked]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    for (name, size), (peak, bound) in zip(asked, json.loads(child.stdout), strict=True):
        of_pixel = f"{peak / WIDTH / HEIGHT:.1f} of {bound / WIDTH / HEIGHT:.1f} bytes a pixel"
        assert bound / 4 < peak <= bound, f"{name} to {size}: {of_pixel}"


def test_two_screenshots_in_4k_are_decoded_at_a_time() -> None:
    """Whatever their format: what is not large is counted by the memory plan."""
    for kind in ("PNG", "JPEG", "WEBP"):
        header = decode.read_header(encoded(Image.new("RGB", (2160, 3840)), kind))
        assert header.needed_bytes(resized_size(header.size, GLM4V)) <= decode.SMALL_BYTES
