"""FP8 numbers (e4m3: sign, 4 bits of exponent with bias 7, 3 of fraction, no infinity) in numpy.

OCP 8-bit floating point specification 1.0; torch.float8_e4m3fn has the same numbers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

LARGEST = 448.0
NO_NUMBER = 0x7F  # without the sign
_LEAST_NORMAL = 2.0**-6
_STEPS = 2.0**9  # a subnormal is a multiple of its inverse
_DROPPED_BITS = 20  # of a float32's fraction
_BIAS = (127 - 7) << 3  # between the exponents, behind three bits of fraction


@cache
def e4m3_values() -> NDArray[np.float32]:
    """What each byte stands for, [256]; the two that stand for no number are NaN."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    values[byte & 127 == NO_NUMBER] = np.nan
    return np.where(byte >= 128, -values, values).astype(np.float32)


def to_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest numbers' codes, ties to even; of what is larger than 448, that of 448.

    NaN becomes one of the two codes that are no number. The upper half of a float32, with a last
    bit that says whether anything is below it, decides: 65,536 cases.
    """
    halves = np.ascontiguousarray(values, np.float32).view("<u2").reshape(*values.shape, 2)
    codes: NDArray[np.uint8] = _codes_of_upper_halves()[halves[..., 1] | (halves[..., 0] != 0)]
    return codes


@cache
def _codes_of_upper_halves() -> NDArray[np.uint8]:
    bits = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    size = bits & np.uint32(0x7FFFFFFF)
    magnitude = size.view(np.float32)
    odd = size >> np.uint32(_DROPPED_BITS) & np.uint32(1)
    rounded = (size + np.uint32((1 << _DROPPED_BITS - 1) - 1) + odd) >> np.uint32(_DROPPED_BITS)
    normal = np.minimum(rounded, np.uint32(_BIAS + NO_NUMBER - 1)) - np.uint32(_BIAS)
    small = np.rint(np.fmin(magnitude, _LEAST_NORMAL) * np.float32(_STEPS)).astype(np.uint32)
    codes = np.where(magnitude < _LEAST_NORMAL, small, normal)
    codes = np.where(np.isnan(magnitude), np.uint32(NO_NUMBER), codes)
    result: NDArray[np.uint8] = (codes | bits >> np.uint32(24) & np.uint32(0x80)).astype(np.uint8)
    return result
