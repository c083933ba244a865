"""Rows rounded in plain numpy: what the quantized kernels are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rounded_rows(
    x: NDArray[np.float32], group_size: int, *, residual: bool = False
) -> NDArray[np.float64]:
    """What int8 rows stand for: each group of a row rounded to 127 steps of its largest value.

    `residual`: where codes are smaller than 8 in the mean, what that left is rounded to 1/254 step.
    """
    rows, cols = x.shape
    padded = np.zeros((rows, -(-cols // group_size) * group_size), np.float32)
    padded[:, :cols] = x
    groups = padded.reshape(rows, -1, group_size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    scaled = groups * inverse
    codes = np.rint(scaled).astype(np.float64)
    scales = (largest / np.float32(127)).astype(np.float64)
    if residual:
        counts = np.minimum(group_size, cols - np.arange(groups.shape[1]) * group_size)
        is_small = np.abs(codes).sum(axis=2) < 8 * counts
        codes += is_small[:, :, None] * np.rint((scaled - codes) * 254) / 254
    values: NDArray[np.float64] = (codes * scales).reshape(rows, -1)[:, :cols]
    return values
