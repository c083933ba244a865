"""A matrix product for Triton's interpreter whose bits do not depend on the tile.

numpy's own adds in an order that changes with the shape of its operands; a card's instruction adds
one after the other. So what tests prove with this one is the order that a kernel itself chooses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tests.support.triton_cpu as _interpreted
from triton.runtime import interpreter


def dot(builder: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """d + a · b in float32, products added one after the other in ascending order of k."""
    left = _interpreted._as_floats(a).data.astype(np.float32)
    right = _interpreted._as_floats(b).data.astype(np.float32)
    total = d.data.copy()
    for k in range(left.shape[-1]):
        total += left[:, k, None] * right[None, k]
    return interpreter.TensorHandle(total, d.dtype.scalar)
