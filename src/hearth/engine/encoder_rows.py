"""The rows of a step that show an image, as the plan's arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearth.engine.sequence_images import SequenceImages


@dataclass(frozen=True, slots=True)
class EncoderRows:
    """`StepPlan.encoder` and `StepPlan.features`."""

    rows: NDArray[np.int32]  # [E, 3]
    features: tuple[NDArray[np.float32], ...]


class EncoderRowsWriter:
    """Collects them, sequence by sequence."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int32]] = []
        self._features: list[NDArray[np.float32]] = []

    def add(self, images: SequenceImages, start: int, count: int, first_row: int) -> None:
        """Tokens `start` … `start + count` − 1 of a sequence, from row `first_row` on."""
        for image, features in zip(images.inputs, images.features, strict=True):
            first = max(start, image.first_token)
            last = min(start + count, image.first_token + image.num_tokens)
            if first >= last:
                continue
            assert features is not None, "an image is computed before it is encoded"
            part = np.empty((last - first, 3), np.int32)
            part[:, 0] = np.arange(first - start + first_row, last - start + first_row)
            part[:, 1] = len(self._features)
            part[:, 2] = np.arange(first - image.first_token, last - image.first_token)
            self._parts.append(part)
            self._features.append(features)

    def written(self) -> EncoderRows | None:
        """All of them; None: there are none."""
        if not self._parts:
            return None
        return EncoderRows(np.concatenate(self._parts), tuple(self._features))
