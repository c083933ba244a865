"""What a mask predicate of transformers lets a token see: everything before it, a window, or else.

A predicate is `(batch, head, query index, key index) → bool`; it is evaluated, not recognized, so
that a mask which only resembles a window (attention in chunks, blocks that see ahead) is told from
one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

Predicate: TypeAlias = Callable[..., torch.Tensor]
_LONGEST_CHECKED = 1 << 20


def causal_window(predicate: Predicate, num_positions: int) -> int | None:
    """The window in tokens of a causal mask over `num_positions`; 0: full; None: another mask.

    Checked for the queries at which a mask of another kind would show: the first and last ones,
    those around the window's length and its multiples, and some between.
    """
    length = min(num_positions, _LONGEST_CHECKED)
    last = _seen(predicate, length - 1, length)
    if last is None:
        return None
    window = 0 if last == length else last
    if window == 0:
        places = {0, 1, 2, length // 3, length // 2}
    else:
        places = {0, 1, window - 1, window, window + 1, 2 * window - 1, 2 * window, length // 2}
    places |= {length - 2, length - 1}
    for query in sorted(place for place in places if 0 <= place < length):
        expected = min(query + 1, window or length)
        if _seen(predicate, query, length) != expected:
            return None
    return window


def _seen(predicate: Predicate, query: int, length: int) -> int | None:
    """How many keys up to its own the query sees; None when they are not the last ones."""
    keys = torch.arange(length + 1)
    zero = torch.zeros((), dtype=torch.long)
    seen = torch.as_tensor(predicate(zero, zero, torch.tensor(query), keys)).expand(length + 1)
    indices = seen.nonzero().flatten()
    if len(indices) == 0 or int(indices[-1]) != query:
        return None
    count = len(indices)
    return count if int(indices[0]) == query - count + 1 else None
