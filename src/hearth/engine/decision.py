"""StepDecision: what the scheduler hands to the step builder and takes back with the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from hearth.engine.sequence import Sequence


@dataclass(slots=True)
class StepDecision:
    """What one step computes: entry i is about `sequences[i]`.

    It computes `num_tokens[i]` tokens from index `starts[i]` on and wants the logits of the last
    `num_logits[i]` of them: of the first `num_given[i]` of these the prompt's own next tokens are
    scored, of the others a token is sampled. The last `len(drafts[i])` of the tokens are not known
    but drafted: each row before one of them samples the token that would make it right. `copies`:
    (group, from block, to block), done before the step. There are never more than `max_logit_rows`
    logits rows: a chunk ends before that.
    """

    max_logit_rows: int = sys.maxsize
    num_rows: int = 0  # logits rows so far
    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_logits: list[int] = field(default_factory=list)
    num_given: list[int] = field(default_factory=list)
    drafts: list[Rows[int]] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)
    is_offered: bool = False  # a drafter was asked, and is told how long the step took

    def fitting(self, sequence: Sequence, start: int, budget: int) -> int:
        """How many tokens of a sequence from `start` on fit into the budget and the logits rows.

        0 where the step has no row left and the first token needs one, or an image stands there
        that is not encoded yet: the sequence has to wait.
        """
        if sequence.images is not None:
            budget = min(budget, sequence.images.num_usable(start))
        num_left = self.max_logit_rows - self.num_rows
        if sequence.is_scored and num_left:
            return min(sequence.num_known - start, budget)
        num_tokens = min(sequence.num_wanted - start, budget)
        num_rows = start + num_tokens - max(start, sequence.first_wanted_row)
        # The rows are those of the chunk's last tokens: a token less is a row less.
        return num_tokens - max(0, num_rows - num_left)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Plans the next `num_tokens` tokens of a sequence."""
        start = sequence.num_computed
        end = start + num_tokens
        self.sequences.append(sequence)
        self.starts.append(start)
        self.num_tokens.append(num_tokens)
        num_given = 0
        if not sequence.is_scored:
            last_scored = min(end, len(sequence.request.prompt) - 1)
            num_given = max(0, last_scored - max(start, sequence.first_wanted_row))
        self.num_given.append(num_given)
        self.drafts.append(())
        self.num_logits.append(num_given + (end == sequence.num_known))
        self.num_rows += self.num_logits[-1]

    def add_draft(self, index: int, draft: Rows[int]) -> None:
        """Lets the step also compute drafted tokens after the last known one of `sequences[index]`.

        The logits of the last known one must be wanted already.
        """
        self.drafts[index] = draft
        self.num_tokens[index] += len(draft)
        self.num_logits[index] += len(draft)
        self.num_rows += len(draft)

    @property
    def is_decoding(self) -> bool:
        """Whether each sequence computes its last known token, and drafted ones, and no more."""
        num_drafted = sum(map(len, self.drafts))
        return sum(self.num_tokens) == len(self.sequences) + num_drafted == self.num_rows

    def remove(self, sequence: Sequence) -> int:
        """Takes a sequence out again; returns how many of its tokens were planned."""
        if sequence not in self.sequences:
            return 0
        index = self.sequences.index(sequence)
        del self.sequences[index], self.starts[index], self.num_given[index], self.drafts[index]
        self.num_rows -= self.num_logits.pop(index)
        return self.num_tokens.pop(index)
