"""What Triton's interpreter lacks for comparisons bit by bit; import it before a kernel's module.

Importing it: float32 becomes bfloat16 by rounding to nearest even, as on a card (the interpreter
of Triton 3.6 and 3.7 cuts the bits off). `ordered_products`: products are sums in ascending order
of K, so that a row has the same bits alone and among others, which numpy's matrix product does not
promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tests.support.ordered_dot as _products  # before triton: it chooses the interpreter
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float


def _rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
    if source != tl.float32 or target != tl.bfloat16:
        if source == tl.bfloat16 and target == tl.float32:
            return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return _convert(data, source, target, mode)
    bits = np.ascontiguousarray(data).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    rounded = np.where(is_nan, bits | np.uint32(0x400000), bits + np.uint32(0x7FFF) + odd)
    return (rounded >> np.uint32(16)).astype(np.uint16)


interpreter._convert_float = _rounded


@contextmanager
def ordered_products() -> Iterator[None]:
    """While it lasts."""
    builder = interpreter.InterpreterBuilder
    plain = builder.create_dot
    builder.create_dot = _products.dot
    try:
        yield
    finally:
        builder.create_dot = plain
