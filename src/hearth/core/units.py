"""Formatting of quantities for messages, and the arithmetic of rounding up."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def format_bytes(num_bytes: float) -> str:
    """Binary units with three significant digits: `1.50 GiB`, `512 B`."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= size:
            value = num_bytes / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{int(num_bytes)} B"


def format_count(count: int) -> str:
    """Thousands separated: `25,480`."""
    return f"{count:,}"


def format_duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def ceil_div(value: int, divisor: int) -> int:
    """The smallest integer ≥ value / divisor, for value ≥ 0 and divisor > 0."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is ≥ value."""
    return ceil_div(value, multiple) * multiple
