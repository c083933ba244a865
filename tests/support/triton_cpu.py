"""Triton's interpreter, so that kernels run on the CPU; import this before a kernel's module.

The interpreter of Triton 3.6 keeps bfloat16 as its bits in uint16 and `tl.dot` multiplies those
bits as integers: here they become float32 first, which holds every product of two bfloat16.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _as_floats(handle: Any) -> Any:
    """A tensor of bfloat16 as float32; any other as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    values = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, tl.float32)


_plain_dot = interpreter.InterpreterBuilder.create_dot


def _dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    return _plain_dot(builder, _as_floats(a), _as_floats(b), *rest)


interpreter.InterpreterBuilder.create_dot = _dot
