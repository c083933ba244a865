"""The size that an image becomes is the one that transformers' processors choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.images.samples import GLM4V, QWEN2_VL, SMALL, processor
from transformers.models.glm4v import image_processing_pil_glm4v as glm4v
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen2_vl

from hearth.core.errors import RequestError
from hearth.core.images import ImageProcessorSpec
from hearth.engine.images.resize import Size, low_detail, num_tokens_of, resized_size


def reference(size: Size, spec: ImageProcessorSpec) -> Size | None:
    """What transformers chooses; None: it refuses the size."""
    bounds = {
        "factor": spec.token_pixels,
        "min_pixels": spec.min_pixels,
        "max_pixels": spec.max_pixels,
    }
    try:
        if spec.frames == 1:
            return Size(*qwen2_vl.smart_resize(size.height, size.width, **bounds))
        frames = {"num_frames": spec.frames, "temporal_factor": spec.frames}
        return Size(*glm4v.smart_resize(height=size.height, width=size.width, **frames, **bounds))
    except ValueError:
        return None


def chosen(size: Size, spec: ImageProcessorSpec) -> Size | None:
    try:
        return resized_size(size, spec)
    except RequestError:
        return None


side = st.one_of(st.integers(1, 60), st.integers(1, 6000), st.sampled_from([27, 28, 29, 1080]))


@given(
    height=side,
    width=side,
    frames=st.sampled_from([1, 2]),
    least=st.integers(1, 40_000),
    room=st.integers(0, 10_000_000),
    patch=st.sampled_from([14, 16]),
)
def test_every_size_becomes_the_reference_s(
    height: int, width: int, frames: int, least: int, room: int, patch: int
) -> None:
    spec = processor(least, least + room, frames, patch_size=patch)
    assert chosen(Size(height, width), spec) == reference(Size(height, width), spec)


@pytest.mark.parametrize(
    ("width", "height", "max_pixels", "expected", "num_tokens"),
    [
        (1080, 2400, 9_633_792, Size(2408, 1092), 3354),
        (1080, 2400, 5_000_000, Size(2352, 1036), 3108),
        (1440, 3200, 9_633_792, None, 5814),
        (1440, 3200, 5_000_000, None, 3108),
        (720, 1600, 9_633_792, None, 1482),
        (720, 1600, 5_000_000, None, 1482),
    ],
)
def test_phone_screens_have_the_tokens_that_are_known_for_them(
    width: int, height: int, max_pixels: int, expected: Size | None, num_tokens: int
) -> None:
    spec = processor(12_544, max_pixels, 2)
    size = resized_size(Size(height, width), spec)
    assert expected is None or size == expected
    assert num_tokens_of(size, spec) == num_tokens


@pytest.mark.parametrize(
    ("size", "spec", "text"),
    [
        (Size(5000, 1), GLM4V, "1×5,000 pixels: one side is more than 200 times"),
        (Size(1, 5000), QWEN2_VL, "5,000×1 pixels: one side is more than 200 times"),
        (Size(0, 0), GLM4V, "0×0 pixels"),
        (Size(0, 9), QWEN2_VL, "9×0 pixels"),
    ],
)
def test_what_has_no_size_of_its_own_is_refused(
    size: Size, spec: ImageProcessorSpec, text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        resized_size(size, spec)


def test_a_narrow_image_is_taken_where_its_enlarged_form_is_not_too_long() -> None:
    assert resized_size(Size(10, 300), GLM4V).height >= 28
    with pytest.raises(RequestError):
        resized_size(Size(1, 300), GLM4V)


def test_turning_an_image_turns_its_size() -> None:
    for height, width in [(5, 900), (1080, 2400), (77, 78), (3000, 4000)]:
        size = resized_size(Size(height, width), SMALL)
        assert resized_size(Size(width, height), SMALL) == Size(size.width, size.height)


def test_low_detail_makes_images_small_but_no_smaller_than_the_model_allows() -> None:
    low = resized_size(Size(2400, 1080), low_detail(GLM4V))
    assert low.num_pixels <= 512 * 512
    assert low_detail(SMALL).max_pixels == SMALL.max_pixels
    large = processor(2_000_000, 9_000_000, 2)
    assert low_detail(large).max_pixels == large.min_pixels
