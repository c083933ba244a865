"""Rows of a vision encoder from the pixels of an image: what it multiplies its first matrix with.

A row is a square of `patch_size`² pixels, normalized. `merge_size`² squares that become one token
stand beside each other, so rows go through the picture in blocks. One picture stands for all
frames of a patch: its values are repeated `temporal_patch_size` times.

    row r      block r // merge², within it (r % merge²) // merge down, (r % merge²) % merge across
    values     [channel][frame][y][x]

Source: `patchify` of transformers 5.23, models/glm4v/image_processing_pil_glm4v.py. A byte has 256
values, so each channel has a table of what becomes of them, made by the very arithmetic of
transformers (float64 to rescale, float32 to normalize): rows equal its rows bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hearth.core.images import ImageProcessorSpec

NUM_CHANNELS = 3
MAX_DIFFERENCE = 0.0  # from transformers' processors, PIL backend


def patch_values(spec: ImageProcessorSpec) -> int:
    """Values of a row."""
    return NUM_CHANNELS * spec.temporal_patch_size * spec.patch_size**2


def patch_rows(
    pixels: NDArray[np.uint8], spec: ImageProcessorSpec, first: int, count: int
) -> NDArray[np.float32]:
    """Rows first … first + count − 1 of an image: float32 [count, patch_values], C order.

    `pixels`: uint8 [height, width, 3], C order, both sides multiples of `spec.token_pixels`; rows
    go from 0 to height · width / patch_size² − 1. Touches no other pixels than those it gives.
    """
    side, merge, frames = spec.patch_size, spec.merge_size, spec.temporal_patch_size
    height, width, _ = pixels.shape
    assert height % spec.token_pixels == 0, "not a whole number of tokens"
    assert width % spec.token_pixels == 0, "not a whole number of tokens"
    grid_height, grid_width = height // side, width // side
    assert 0 <= first <= first + count <= grid_height * grid_width, "rows outside of the image"
    rows = np.arange(first, first + count)
    block, inner = np.divmod(rows, merge * merge)
    block_down, block_across = np.divmod(block, grid_width // merge)
    inner_down, inner_across = np.divmod(inner, merge)
    squares = pixels.reshape(grid_height, side, grid_width, side, NUM_CHANNELS)
    # An index array, a slice, an index array: numpy puts the rows first, [count, y, x, channel].
    found = squares[block_down * merge + inner_down, :, block_across * merge + inner_across]
    values = np.empty((count, NUM_CHANNELS, frames, side, side), np.float32)
    for channel, table in enumerate(_tables(spec)):
        values[:, channel] = table[found[..., channel]][:, np.newaxis]
    return values.reshape(count, patch_values(spec))


@lru_cache(maxsize=8)
def _tables(spec: ImageProcessorSpec) -> tuple[NDArray[np.float32], ...]:
    """What each byte becomes, a table of 256 a channel."""
    rescaled = (np.arange(256, dtype=np.float64) * spec.rescale).astype(np.float32)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    return tuple((rescaled - mean[c]) / std[c] for c in range(NUM_CHANNELS))
