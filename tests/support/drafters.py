"""A drafter that knows the answers, and lies now and then: what it proposes must change nothing."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Rows

from hearth.engine.sequence import Sequence
from hearth.engine.speculation.drafter import RoomOf


class LyingDrafter:
    """Drafts any number of tokens, right ones up to a random place; implements Drafter.

    `answers`: what each request answers, from its first token on, as far as the test knows it.
    """

    def __init__(self, answers: Mapping[str, Rows[int]], seed: int = 0, longest: int = 9) -> None:
        self.answers = answers
        self.num_accepted = self.num_drafted = self.num_steps = 0
        self._random = random.Random(seed)
        self._longest = longest

    def is_resting(self) -> bool:
        return False

    def draft(self, sequences: Rows[Sequence], most: int, room_of: RoomOf) -> dict[int, array[int]]:
        assert most > 0
        drafts: dict[int, array[int]] = {}
        for index, sequence in enumerate(sequences):
            length = min(most, room_of(sequence), self._random.randint(0, self._longest))
            if length <= 0:
                continue
            most -= length
            begin = sequence.num_generated
            answer = self.answers.get(sequence.request_id, ())
            truth = list(answer[begin : begin + length])
            truth += [0] * (length - len(truth))
            lie = self._random.randint(0, 2 * self._longest)
            if lie < length:
                truth[lie] = int(truth[lie] == 0)
            drafts[index] = array("i", truth)
        return drafts

    def note_verified(self, num_drafted: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafted
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted

    def note_step(self, sequences: Rows[Sequence], num_drafted: int, step_s: float) -> None:
        assert sequences
        assert step_s >= 0
        self.num_steps += 1
