"""Queues: where each sequence is from its submission to its end, and with it who holds blocks.

                  ┌─ send_back ─┐
                  ▼             │
    enter ─▶   waiting ─admit─▶ running ─end─▶ gone
                  │             └─end, while a step is in flight─▶ leaving ─let_go─▶ gone
                  └─end─▶ gone

Waiting sequences hold no blocks. A leaving one keeps its blocks because its step still writes to
them; nothing is planned for it any more.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from hearth.engine.integrity import check_sequences
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.reuse import free_finished
from hearth.engine.sequence import Sequence, SequenceState

_rank = attrgetter("rank")


class Queues:
    """All sequences of a scheduler; others read its lists, and change nothing in them."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self.by_id: dict[str, Sequence] = {}  # all that are not finished
        self.running: list[Sequence] = []  # by rank
        self.waiting: list[Sequence] = []  # by rank
        self._leaving: list[Sequence] = []

    def enter(self, sequence: Sequence) -> None:
        """A new one waits."""
        self.by_id[sequence.request_id] = sequence
        insort(self.waiting, sequence, key=_rank)

    def admit(self, sequence: Sequence, num_hit: int) -> None:
        """A waiting one runs, in the blocks that its table has; `num_hit` tokens are computed."""
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        sequence.start(num_hit, self._blocks.block_size)

    def send_back(self, victim: Sequence) -> None:
        """A running one waits again: blocks freed (published ones stay cached), computed anew."""
        self.running.remove(victim)
        self._blocks.free(victim.table)
        victim.restart()
        insort(self.waiting, victim, key=_rank)

    def end(self, sequence: Sequence) -> None:
        """It is finished; its blocks are freed as soon as no step uses them."""
        queue = self.running if sequence.state is SequenceState.RUNNING else self.waiting
        queue.remove(sequence)
        sequence.state = SequenceState.FINISHED
        del self.by_id[sequence.request_id]
        if sequence.num_in_flight:
            self._leaving.append(sequence)
        else:
            free_finished(sequence, self._blocks)

    def let_go(self, sequence: Sequence) -> None:
        """A step of a finished one is over; after the last in flight its blocks are freed."""
        if sequence.num_in_flight == 0:
            self._leaving.remove(sequence)
            free_finished(sequence, self._blocks)

    def check(self) -> None:
        """Asserts the invariants of the sequences and of the block manager."""
        check_sequences(self.running, self.waiting, self._leaving, self._blocks)
        assert len(self.by_id) == len(self.running) + len(self.waiting), "one in no queue"
