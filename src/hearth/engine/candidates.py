"""Which waiting sequences could be admitted in this step.

The walk goes through the queue in rank order and sets aside a place and blocks for everyone it
meets; it ends at the first for whom too little is left. Whoever is admitted afterwards therefore
takes nothing that one before it needs: a short prompt may pass a long one in the step's budget,
never in memory or in the number of running sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows

from hearth.engine.kv.blocks import BlockManager
from hearth.engine.reuse import matched_hashes
from hearth.engine.sequence import Sequence

# Bounds the walk's cost; a short prompt passes that many long ones, not more.
MAX_CANDIDATES = 16


def find_candidates(
    waiting: Iterable[Sequence],
    sequences: Mapping[str, Sequence],
    running: Rows[Sequence],
    blocks: BlockManager,
    *,
    num_places: int,
    step_tokens: int,
) -> dict[Sequence, int]:
    """The admissible ones in rank order, `num_places` at most, with the tokens each lacks.

    `sequences`: all that have not ended, by id. Changes nothing.
    """
    found: dict[Sequence, int] = {}
    num_places = min(num_places, MAX_CANDIDATES)
    if num_places <= 0:
        return found
    reserved = [0] * blocks.num_groups
    for sequence in running:
        blocks.add_outstanding(reserved, sequence.table, sequence.num_known, step_tokens)
    for sequence in waiting:
        if _awaits_leader(sequence, sequences, blocks):
            continue
        # Among others it must fit whole: it would only be preempted half-way.
        whole = min(sequence.num_known + 1, sequence.max_known)
        matched = matched_hashes(sequence, blocks)
        fits = blocks.reserve(reserved, matched, whole, step_tokens)
        num_matched = len(matched) * blocks.block_size
        images = sequence.images
        if images is not None and images.num_usable(num_matched) == 0:
            # It could not use its place yet; those behind it may pass, beside its blocks.
            if not fits:
                break
            continue
        if fits or not (running or found):
            found[sequence] = sequence.num_known - num_matched
        if not fits or len(found) == num_places:
            break
    return found


def _awaits_leader(
    sequence: Sequence, sequences: Mapping[str, Sequence], blocks: BlockManager
) -> bool:
    """Whether the one it follows, which ranks before it, still computes their prompt."""
    leader = sequences.get(sequence.request.follows)
    return (
        leader is not None
        and leader.rank < sequence.rank
        and blocks.enable_prefix_caching
        and leader.num_computed < len(sequence.request.prompt)
    )
