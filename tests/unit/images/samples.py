"""Pictures, files and processors for the tests of images."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from hearth.core.images import ImageProcessorSpec
from hearth.models.image_sizes import CLIP_MEAN, CLIP_STD


def processor(min_pixels: int, max_pixels: int, frames: int, **changes: Any) -> ImageProcessorSpec:
    settings: dict[str, Any] = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
    }
    return ImageProcessorSpec(min_pixels, max_pixels, frames, **{**settings, **changes})


GLM4V = processor(12_544, 9_633_792, 2)
QWEN2_VL = processor(3_136, 1_003_520, 1)
SMALL = processor(12_544, 2 * 28 * 28 * 64, 2)  # 64 tokens at most


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise over a gradient, so that no two pixels and no two pictures are alike."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    ground = (down * 3 + across * 5)[..., None] + np.array([0, 60, 120, 40])
    values = ((ground + rng.integers(0, 90, (height, width, 4))) % 256).astype(np.uint8)
    image = Image.fromarray(values)
    if mode == "RGBA":
        return image
    if mode == "LA":
        return image.convert("LA")
    return image.convert("RGB").convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def png(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    return encoded(picture(width, height, seed=seed))


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png_header(width: int, height: int) -> bytes:
    """A PNG that names this size and has next to no pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
