"""Drafts in a step: where there is room for them, and which of them came true.

A draft of k tokens makes k more rows of its sequence, each with its logits. Every row samples its
token as it would without a draft, at its own position; the row of a drafted token counts if the row
before it sampled that very token. So the answer is the same, token for token, and only the number
of steps is another. Keys and values of the other rows lie behind what counts as computed: nobody
reads them, no block with one of them is published, and the next step writes over them.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from hearth.engine.decision import StepDecision
from hearth.engine.kv.blocks import BlockManager
from hearth.engine.sequence import Sequence
from hearth.engine.speculation.drafter import Drafter


def add_drafts(
    decision: StepDecision, drafter: Drafter, blocks: BlockManager, budget: int, *, may_grow: bool
) -> None:
    """Adds drafts to a step of decoding sequences, from what they leave of the budget and the rows.

    Steps with a prompt's chunk carry none: it takes the budget, or nearly all of it. Drafts preempt
    nobody. They take new blocks only if they `may_grow`, which is where nobody waits, and if each
    sequence of the step could still take another.
    """
    if drafter.is_resting() or not decision.is_decoding:
        return
    sequences = decision.sequences
    num_left = min(budget - len(sequences), decision.max_logit_rows - decision.num_rows)
    if num_left <= 0:
        return

    def room_of(sequence: Sequence) -> int:
        # The token after the last drafted one is sampled too, and must still be permitted.
        permitted = sequence.max_known - sequence.num_known - 1
        return permitted if may_grow else min(permitted, _room_in_blocks(sequence, blocks))

    decision.is_offered = True
    for index, draft in drafter.draft(sequences, num_left, room_of).items():
        sequence = sequences[index]
        end = sequence.num_known + len(draft)
        room = _room_in_blocks(sequence, blocks)
        if len(draft) > room and not blocks.allocate(sequence.table, end, spare=len(sequences)):
            draft = draft[:room]
        if draft:
            decision.add_draft(index, draft)


def num_accepted(draft: Rows[int], sampled: Rows[int]) -> int:
    """How many leading tokens of a draft came true; `sampled` holds one token more than it."""
    for count, (drafted, token) in enumerate(zip(draft, sampled, strict=False)):
        if drafted != token:
            return count
    return len(draft)


def _room_in_blocks(sequence: Sequence, blocks: BlockManager) -> int:
    """Tokens after the known ones that fit into the blocks that a sequence has."""
    return sequence.table.end_block * blocks.block_size - sequence.num_known
