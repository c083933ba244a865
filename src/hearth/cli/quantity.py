"""Numbers as people write them on a command line: 2G, 512M, 25.6k.

As in vLLM, a capital letter is binary (1K = 1024) and a small one decimal (1k = 1000); the long
forms KiB and kB say the same explicitly.
"""

from __future__ import annotations

import re

_FACTORS = {
    "": 1,
    "b": 1,
    **{letter.lower(): 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{letter: 1024**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_quantity(text: str) -> int:
    """A whole number of 1 or more. Raises ValueError with what is permitted."""
    match = _QUANTITY.fullmatch(text.strip().replace(",", "").replace("_", ""))
    unit = "" if match is None else match[2]
    factor = _FACTORS.get(unit, _FACTORS.get(unit.lower()) if len(unit) > 1 else None)
    value = 0 if match is None or factor is None else round(float(match[1]) * factor)
    if value < 1:
        raise ValueError(
            f"{text!r} is not a quantity (permitted: a whole number of 1 or more, with a suffix "
            "K, M, G, T for powers of 1024 or k, m, g, t for powers of 1000, such as 2G or 512M)"
        )
    return value
