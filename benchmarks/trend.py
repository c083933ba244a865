"""A straight line through samples, and how sure its slope is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


@dataclass(frozen=True)
class Slope:
    """Units of y per unit of x; `margin`: half of its 95 % interval."""

    per_unit: float
    margin: float


def slope_of(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Least squares; the interval allows for samples that resemble their neighbours.

    Memory moves in steps, so residuals are correlated: with correlation r between neighbours, n
    samples say as much as n (1 − r) / (1 + r) independent ones. NaN of fewer than three samples.
    """
    if len(x) < 3:
        return Slope(math.nan, math.nan)
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread
    residuals = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y)]
    square = sum(value**2 for value in residuals)
    if square == 0:
        return Slope(slope, 0.0)
    together = sum(a * b for a, b in pairwise(residuals)) / square
    together = max(0.0, min(0.99, together))
    variance = square / (len(x) - 2) / spread * (1 + together) / (1 - together)
    return Slope(slope, 1.96 * math.sqrt(variance))
