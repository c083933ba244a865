"""The integrity check of the engine's bookkeeping.

Run by tests after every step, and in idle time when `debug_checks` is set. Asserts only; changes
nothing but the cached hashes of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from hearth.engine.kv.blocks import BlockManager
from hearth.engine.sequence import Sequence, SequenceState


def check_sequences(
    running: Rows[Sequence], waiting: Rows[Sequence], leaving: Rows[Sequence], blocks: BlockManager
) -> None:
    """Asserts that queues, counters, tables and published hashes agree with each other.

    `leaving`: finished sequences whose blocks a step in flight still uses.
    """
    for queue in (running, waiting):
        ranks = [sequence.rank for sequence in queue]
        assert ranks == sorted(set(ranks)), "a queue out of order, or a sequence twice in it"
    blocks.check([sequence.table for sequence in (*running, *waiting, *leaving)])
    for sequence in (*running, *waiting):
        assert sequence.num_computed + sequence.num_in_flight <= sequence.num_known
        assert sequence.num_known == len(sequence.tokens) <= sequence.max_known
    for sequence in waiting:
        assert sequence.state is SequenceState.WAITING
        assert sequence.table.end_block == sequence.num_computed == sequence.num_in_flight == 0
    for sequence in running:
        assert sequence.state is SequenceState.RUNNING
        assert sequence.num_computed <= sequence.table.end_block * blocks.block_size
        _check_hashes(sequence, blocks)
    assert all(sequence.state is SequenceState.FINISHED for sequence in leaving)


def _check_hashes(sequence: Sequence, blocks: BlockManager) -> None:
    """Asserts that a running sequence's published blocks are full, and under the right hash."""
    num_full = sequence.num_computed // blocks.block_size
    digests = sequence.block_hashes(num_full, blocks.block_size)
    for group, table in enumerate(sequence.table.blocks):
        for index, block in enumerate(table, sequence.table.first_block[group]):
            digest = blocks.hash_of(group, block)
            expected = digests[index] if index < num_full else None
            assert digest is None or digest == expected, f"block {block} has a wrong hash"
