"""From a file's bytes to rows of the encoder: equal to transformers' processors, bit for bit."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.unit.images.samples import SMALL, encoded, picture, processor
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hearth.core.images import ImageProcessorSpec
from hearth.engine.images.decode import decode_rgb, read_header, resized_pixels, size_of
from hearth.engine.images.patches import MAX_DIFFERENCE, patch_rows, patch_values
from hearth.engine.images.resize import resized_size


def ours(data: bytes, spec: ImageProcessorSpec) -> NDArray[np.uint8]:
    rgb = decode_rgb(read_header(data))
    size = resized_size(size_of(rgb), spec)
    flat = np.frombuffer(resized_pixels(rgb, size), np.uint8)
    return flat.reshape(size.height, size.width, 3)


def reference(data: bytes, spec: ImageProcessorSpec) -> tuple[NDArray[np.float32], list[int]]:
    """Rows and grid of transformers' processor."""
    kind: Any = Qwen2VLImageProcessorPil if spec.frames == 1 else Glm4vImageProcessorPil
    processor = kind(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        patch_size=spec.patch_size,
        temporal_patch_size=spec.temporal_patch_size,
        merge_size=spec.merge_size,
    )
    found = processor(images=[Image.open(BytesIO(data))], return_tensors="np")
    return found["pixel_values"], found["image_grid_thw"][0].tolist()


def assert_equal(data: bytes, spec: ImageProcessorSpec, chunk: int) -> None:
    pixels = ours(data, spec)
    rows, grid = reference(data, spec)
    side = spec.patch_size
    assert [1, pixels.shape[0] // side, pixels.shape[1] // side] == grid
    assert rows.shape == (grid[1] * grid[2], patch_values(spec))
    found = [
        patch_rows(pixels, spec, first, min(chunk, len(rows) - first))
        for first in range(0, len(rows), chunk)
    ]
    whole = np.concatenate(found)
    assert whole.dtype == np.float32
    assert MAX_DIFFERENCE == 0
    assert np.array_equal(whole, rows)


@given(
    width=st.integers(1, 260),
    height=st.integers(1, 260),
    mode=st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1"]),
    frames=st.sampled_from([1, 2]),
    chunk=st.integers(1, 300),
)
def test_rows_equal_the_reference_s(
    width: int, height: int, mode: str, frames: int, chunk: int
) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    spec = processor(12_544 if frames == 2 else 3_136, 2 * 28 * 28 * 40, frames)
    assert_equal(encoded(picture(width, height, mode)), spec, chunk)


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (picture(90, 70), "JPEG", {"quality": 80}),
        (picture(90, 70, "L"), "JPEG", {}),
        (picture(90, 70, "CMYK"), "JPEG", {}),
        (picture(90, 70), "WEBP", {"lossless": True}),
        (picture(90, 70, "RGBA"), "WEBP", {"lossless": True}),
        (picture(90, 70, "P"), "GIF", {}),
        (picture(90, 70, "P"), "GIF", {"transparency": 3}),
        (picture(90, 70, "P"), "PNG", {"transparency": bytes(range(256))}),
        (picture(90, 70, "P"), "PNG", {"transparency": 7}),
        (picture(90, 70, "L"), "PNG", {"transparency": 100}),
        (picture(90, 70), "PNG", {"transparency": (0, 60, 120)}),
        (picture(90, 70), "BMP", {}),
        (picture(90, 70, "1"), "BMP", {}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_kind_of_file_equals_the_reference(
    image: Image.Image, kind: str, options: dict[str, Any]
) -> None:
    assert_equal(encoded(image, kind, **options), SMALL, 7)


def test_a_screenshot_equals_the_reference() -> None:
    data = encoded(picture(1080, 2400, "RGBA"), compress_level=1)
    assert_equal(data, processor(12_544, 5_000_000, 2), 4096)


@pytest.mark.parametrize(("patch", "frames", "merge"), [(14, 2, 2), (16, 2, 2), (8, 1, 1)])
def test_other_processors_have_their_own_rows(patch: int, frames: int, merge: int) -> None:
    spec = processor(12_544, 200_000, 2, patch_size=patch, temporal_patch_size=2, merge_size=merge)
    assert_equal(encoded(picture(120, 90)), spec, 5)


def test_rows_outside_of_the_image_are_a_fault_of_ours() -> None:
    pixels = np.zeros((28, 28, 3), np.uint8)
    assert patch_rows(pixels, SMALL, 0, 0).shape == (0, patch_values(SMALL))
    with pytest.raises(AssertionError):
        patch_rows(pixels, SMALL, 2, 3)
    with pytest.raises(AssertionError):
        patch_rows(np.zeros((28, 30, 3), np.uint8), SMALL, 0, 1)
