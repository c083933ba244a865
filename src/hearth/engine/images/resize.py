"""The size that an image is resized to, as the models' own processors choose it.

Both sides become multiples of a token's side, their product stays between the processor's bounds,
and their ratio as near to the image's as that allows. Source: `smart_resize` of transformers 5.23,
models/glm4v (`frames` of 2 or more) and models/qwen2_vl (`frames` 1); equal in every integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hearth.core.errors import RequestError
from hearth.core.images import ImageProcessorSpec

MAX_ASPECT_RATIO = 200
# OpenAI's "detail": "low" is an image of 512 × 512 pixels.
LOW_DETAIL_PIXELS = 512 * 512


@dataclass(frozen=True, slots=True)
class Size:
    """Of an image, in pixels."""

    height: int
    width: int

    @property
    def num_pixels(self) -> int:
        """Height · width."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.width:,}×{self.height:,}"


def resized_size(size: Size, spec: ImageProcessorSpec) -> Size:
    """The size to resize to. Raises RequestError for an empty image and a ratio above 200."""
    height, width = size.height, size.width
    if height < 1 or width < 1:
        raise RequestError(f"the image has {size} pixels (permitted: 1×1 or more)")
    side, frames = spec.token_pixels, spec.frames
    if frames > 1 and min(height, width) < side:  # Glm4v enlarges a small image first
        scale = max(side / height, side / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise RequestError(
            f"the image has {size} pixels: one side is more than {MAX_ASPECT_RATIO} times the "
            f"other (permitted: {MAX_ASPECT_RATIO} times at most, the shorter side taken as "
            f"{side} pixels or more)"
            if frames > 1
            else f"the image has {size} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            f"the other (permitted: {MAX_ASPECT_RATIO} times at most)",
            hint="cut or pad the image",
        )
    new_height, new_width = round(height / side) * side, round(width / side) * side
    if frames * new_height * new_width > spec.max_pixels:
        shrink = math.sqrt((frames * height * width) / spec.max_pixels)
        new_height = max(side, math.floor(height / shrink / side) * side)
        new_width = max(side, math.floor(width / shrink / side) * side)
    elif frames * new_height * new_width < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (frames * height * width))
        new_height = math.ceil(height * grow / side) * side
        new_width = math.ceil(width * grow / side) * side
    return Size(new_height, new_width)


def low_detail(spec: ImageProcessorSpec) -> ImageProcessorSpec:
    """The processor for `"detail": "low"`: 512 · 512 pixels at most, or its own least."""
    bound = max(spec.min_pixels, spec.frames * LOW_DETAIL_PIXELS)
    return replace(spec, max_pixels=min(spec.max_pixels, bound))


def num_tokens_of(size: Size, spec: ImageProcessorSpec) -> int:
    """Tokens that stand for an image of this size, which `resized_size` gave."""
    return size.num_pixels // spec.token_pixels**2
