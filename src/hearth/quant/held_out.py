"""Which lines of a text were not calibrated on: what is measured on the others flatters.

A calibration knows tokens, not places. So a line counts as seen if any WINDOW characters of it,
blanks aside, stand in what the calibrated tokens spell; a shorter one cannot be told and counts as
seen, too. A line that was cut by the border of a sequence is found by either part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hearth.engine.text.tokenizer import Tokenizer

WINDOW = 32
_STRIDE = 4  # between two places of a line that are looked at


class SeenText:
    """What was calibrated on; `unseen` gives what of a text was not."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Takes some 110 bytes a character."""
        self._windows: set[str] = set()
        for text in texts:
            bare = _bare(text)
            self._windows.update(bare[i : i + WINDOW] for i in range(len(bare) - WINDOW + 1))

    @classmethod
    def of_tokens(cls, tokenizer: Tokenizer, sequences: Iterable[Sequence[int]]) -> SeenText:
        """Of sequences of token ids."""
        return cls(tokenizer.decode_all(list(one)) for one in sequences)

    def unseen(self, text: str) -> str:
        """Its lines without those that were seen, blank ones included."""
        return "".join(line for line in text.splitlines(keepends=True) if not self._is_seen(line))

    def _is_seen(self, line: str) -> bool:
        bare = _bare(line)
        if len(bare) < WINDOW:
            return bool(bare)
        places = (*range(0, len(bare) - WINDOW, _STRIDE), len(bare) - WINDOW)
        return any(bare[i : i + WINDOW] in self._windows for i in places)


def _bare(text: str) -> str:
    return "".join(text.split())
