"""How weights lie on the device, and how many bytes that is: the one place that knows.

Dense matrices are [rows, cols], row-major. Codes of 4 bits lie eight to an int32 word, neighbouring
columns of one row, the first in the low bits: [cols / 8, rows], so that neighbouring threads read
neighbouring rows; codes of 8 bits and FP8 are uint8 [rows, cols]. Scales and zero points are
[groups, rows]. Rows of a stack follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """`data`: [rows, cols] in bfloat16, float16 or float32."""

    data: Tensor


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """A weight is scale · (code − zero point), the middle code where `zeros` is None.

    `codes`: int32 [ceil(cols / 8), rows] of 4 bits, else uint8 [rows, cols]; padded columns have
    the middle code. `scales` [groups, rows] float32; `zeros` [groups, rows] uint8. `is_float`: codes
    are FP8 (e4m3) numbers without a zero point.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int
    cols: int
    is_float: bool = False


Matrix: TypeAlias = DenseMatrix | CodedMatrix
