"""Edits of logits written row by row, as the ragged arrays of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hearth.core.step import LogitEdits


@dataclass(frozen=True)
class RowEdits:
    """Edits of one row: token → times generated (0: prompt only), token → bias."""

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    counts: dict[int, int] = field(default_factory=dict)
    biases: dict[int, float] = field(default_factory=dict)


def logit_edits(rows: Sequence[RowEdits]) -> LogitEdits:
    """The arrays of all rows."""

    def starts(lists: Sequence[dict[int, int]] | Sequence[dict[int, float]]) -> np.ndarray:
        return np.cumsum([0, *[len(one) for one in lists]]).astype(np.int32)

    counts, biases = [row.counts for row in rows], [row.biases for row in rows]
    return LogitEdits(
        repetition=np.array([row.repetition for row in rows], np.float32),
        frequency=np.array([row.frequency for row in rows], np.float32),
        presence=np.array([row.presence for row in rows], np.float32),
        count_start=starts(counts),
        count_tokens=np.array([t for one in counts for t in one], np.int32),
        counts=np.array([n for one in counts for n in one.values()], np.int32),
        bias_start=starts(biases),
        bias_tokens=np.array([t for one in biases for t in one], np.int32),
        biases=np.array([b for one in biases for b in one.values()], np.float32),
    )
