"""StepDecision: what the scheduler hands to the step builder and takes back with the results."""

from __future__ import annotations

from dataclasses import dataclass, field

from hearth.engine.sequence import Sequence


@dataclass(slots=True)
class StepDecision:
    """What one step computes: entry i is about `sequences[i]`.

    It computes `num_tokens[i]` tokens from index `starts[i]` on and wants the logits of the last
    `num_logits[i]` of them. `copies`: (group, from block, to block), done before the step.
    """

    sequences: list[Sequence] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_logits: list[int] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """Plans the next `num_tokens` tokens of a sequence."""
        start = sequence.num_computed
        self.sequences.append(sequence)
        self.starts.append(start)
        self.num_tokens.append(num_tokens)
        self.num_logits.append(1 if start + num_tokens == sequence.num_known else 0)

    def remove(self, sequence: Sequence) -> int:
        """Takes a sequence out again; returns how many of its tokens were planned."""
        if sequence not in self.sequences:
            return 0
        index = self.sequences.index(sequence)
        del self.sequences[index], self.starts[index], self.num_logits[index]
        return self.num_tokens.pop(index)
