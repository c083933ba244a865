"""Images of a prompt, as plain data: how they are prepared, and what the engine is told of one.

A *patch* is a square of pixels, a row of the vision encoder; `merge_size`² patches beside each
other become one token of the prompt. The front end resizes, the engine normalizes: so an image
travels as bytes, and its digest names what was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

# Pixels of all requests that wait or run: of 32 screenshots of 1092 × 2408, at least.
LEAST_PIXEL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ImageProcessorSpec:
    """How an image becomes patches; from preprocessor_config.json and the flags.

    `min_pixels` and `max_pixels` bound `frames` · height · width after resizing: Glm4v counts the
    two frames that one picture is doubled to (frames 2), Qwen2-VL does not (frames 1).
    """

    min_pixels: int
    max_pixels: int
    frames: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255

    @property
    def token_pixels(self) -> int:
        """Width and height of the pixels of a token: both sides of an image are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def max_patches(self) -> int:
        """Of one image, by `max_pixels`."""
        return max(self.merge_size**2, self.max_pixels // (self.frames * self.patch_size**2))


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the front end must know to take images for a model.

    `token_id` is the token that stands, several times, for an image in a prompt.
    """

    processor: ImageProcessorSpec
    token_id: int
    max_patches: int  # of one image: for more the encoder has no room
    pixel_bytes: int = LEAST_PIXEL_BYTES  # of all requests that wait or run

    @property
    def image_bytes(self) -> int:
        """Of the pixels of the largest image."""
        return self.max_patches * self.processor.patch_size**2 * 3


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a prompt: tokens first_token … first_token + num_tokens − 1 stand for it.

    `grid_height`, `grid_width`: in patches, multiples of the merge size. `path`: a file of uint8
    RGB pixels, [grid_height · patch_size, grid_width · patch_size, 3], which the front end keeps
    until the request's terminal event. `digest`: SHA-256 over both sizes (as two 4-byte
    little-endian numbers: height, width in patches) and the pixels; equal ones share encoder
    outputs and blocks of KV cache.
    """

    digest: bytes
    first_token: int
    num_tokens: int
    grid_height: int
    grid_width: int
    path: str
