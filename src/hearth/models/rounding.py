"""Rounds Python floats to narrower formats, where a model's constants are defined that way."""

from __future__ import annotations

import struct


def float32(value: float) -> float:
    """The nearest float32."""
    result: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return result


def bfloat16(value: float) -> float:
    """The nearest bfloat16 of a finite value, even among equals."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    result: float = struct.unpack("<f", struct.pack("<I", rounded))[0]
    return result
