"""How the sequences of one step share its token budget. Integers only; the scheduler asks.

Decoding sequences come first, one token each, so that every running stream gets its next token in
every step. What they leave is shared by prefills, those that run and those that could be admitted,
one priority after the other and within one by `share_prefills`:

    the first in rank      at least half
    much shorter ones      the other half, the shortest first
    then                   what is left: to the first, then to the others in rank order

Much shorter is one that lacks at most half of what the first lacks. At exactly half, the mean time
to the first token is that of first come, first served; below it is shorter, above it would be
longer (two equal prompts that share a budget both end when the second would have ended alone).
Since the first moves on by at least half of the budget in every step, nobody starves: a prompt
waits at most twice as long as it would have to behind those that came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from itertools import groupby
from operator import attrgetter

from hearth.engine.sequence import Sequence


def split_by_missing(running: Rows[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
    """Decoding sequences (they lack one token), and those with longer chunks; order kept."""
    decoding: list[Sequence] = []
    prefills: list[Sequence] = []
    for sequence in running:
        missing = sequence.num_known - sequence.num_computed
        (decoding if missing == 1 else prefills).append(sequence)
    return decoding, prefills


def share_prefills(missing: Rows[int], budget: int) -> list[int]:
    """Tokens for each of the prefills of one priority, in rank order; at most what it lacks."""
    shares = [0] * len(missing)
    left = budget

    def give(index: int, most: int) -> None:
        nonlocal left
        num_tokens = min(missing[index] - shares[index], most, left)
        shares[index] += num_tokens
        left -= num_tokens

    if not missing:
        return shares
    give(0, budget - budget // 2)
    short = [i for i in range(1, len(missing)) if 2 * missing[i] <= missing[0]]
    for index in sorted(short, key=missing.__getitem__):  # stable: ties in rank order
        give(index, left)
    for index in range(len(missing)):
        give(index, left)
    return shares


def share_by_priority(missing: Mapping[Sequence, int], budget: int) -> dict[Sequence, int]:
    """Tokens for each prefill that gets any; `missing`: the tokens that each of them lacks."""
    shares: dict[Sequence, int] = {}
    ranked = sorted(missing, key=attrgetter("rank"))
    for _, group in groupby(ranked, key=lambda sequence: sequence.rank[0]):
        members = list(group)
        found = share_prefills([missing[sequence] for sequence in members], budget)
        shares.update((member, share) for member, share in zip(members, found) if share)
        budget -= sum(found)
    return shares
