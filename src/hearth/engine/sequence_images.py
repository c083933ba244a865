"""The images of a sequence: positions of its tokens, what its blocks depend on, encoder outputs.

Positions have three rows (time, height, width; M-RoPE, arXiv 2409.12191): equal for text, while an
image's tokens keep the time at which it begins and count its rows and columns from there. An image
moves what follows on by the larger of its sides, in tokens, not by its number of tokens: so text
behind it stands at its index plus a delta, which is the sequence's own for good.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from hearth.core.images import ImageInput


class SequenceImages:
    """What a sequence with images keeps beside its counters.

    `num_ready`: tokens that can be computed by now; an image that is not encoded stands there.
    `num_past`: images up to there are taken to be computed, and nothing before may be.
    `features`: of each image that is encoded and has tokens left to compute, [tokens, hidden].
    """

    __slots__ = ("_keys", "delta", "features", "inputs", "num_past", "num_ready", "positions")

    def __init__(self, inputs: Rows[ImageInput], num_prompt: int) -> None:
        self.inputs = tuple(inputs)
        self.positions, self.delta = positions_of(self.inputs, num_prompt)
        self.num_ready = inputs[0].first_token
        self.num_past = 0
        self._keys: dict[int, dict[int, bytes]] = {}  # by the size of a block
        self.features: list[NDArray[np.float32] | None] = [None] * len(inputs)

    def positions_from(self, start: int, count: int) -> NDArray[np.int32]:
        """Positions of tokens `start` … `start + count` − 1, [3, count]."""
        num_prompt = self.positions.shape[1]
        own = self.positions[:, start : start + count]
        behind = np.arange(max(start, num_prompt), start + count, dtype=np.int32) + self.delta
        return np.concatenate((own, np.broadcast_to(behind, (3, len(behind)))), axis=1)

    def extra_keys(self, block_size: int) -> dict[int, bytes]:
        """What the blocks with tokens of images depend on beside their tokens."""
        if block_size in self._keys:
            return self._keys[block_size]
        keys = self._keys.setdefault(block_size, {})
        for image in self.inputs:
            last = image.first_token + image.num_tokens - 1
            place = (image.first_token % block_size).to_bytes(4, "little")
            for block in range(image.first_token // block_size, last // block_size + 1):
                keys[block] = keys.get(block, b"") + image.digest + place
        return keys

    def num_usable(self, start: int) -> int:
        """How many tokens from `start` on can be computed by now."""
        return max(0, self.num_ready - start) if start >= self.num_past else 0

    def keep(self, index: int, features: NDArray[np.float32] | None) -> None:
        """Image `index` is encoded; None: it is not, or has no tokens left to compute."""
        self.features[index] = features

    def wait_for(self, index: int | None) -> None:
        """Tokens from image `index` on cannot be computed yet; None: all can."""
        self.num_ready = sys.maxsize if index is None else self.inputs[index].first_token


def positions_of(inputs: Rows[ImageInput], num_prompt: int) -> tuple[NDArray[np.int32], int]:
    """Positions of a prompt's tokens, [3, num_prompt], and what to add to an index behind it."""
    parts: list[NDArray[np.int32]] = []
    index = position = 0
    for image in inputs:
        parts.append(_text(position, image.first_token - index))
        position += image.first_token - index
        height, width = merged_grid(image)
        grid = np.indices((1, height, width), np.int32).reshape(3, -1) + np.int32(position)
        parts.append(grid)
        position += max(height, width)
        index = image.first_token + image.num_tokens
    parts.append(_text(position, num_prompt - index))
    return np.concatenate(parts, axis=1), position - index


def merged_grid(image: ImageInput) -> tuple[int, int]:
    """Height and width of an image in tokens."""
    merge = math.isqrt(image.grid_height * image.grid_width // image.num_tokens)
    return image.grid_height // merge, image.grid_width // merge


def _text(position: int, count: int) -> NDArray[np.int32]:
    return np.broadcast_to(np.arange(position, position + count, dtype=np.int32), (3, count))
