"""What was calibrated on is found again, wherever a sequence was cut."""

from __future__ import annotations

from tests.unit.text import builders

from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig
from hearth.quant.held_out import SeenText

LINES = [
    "The first line tells of ships that come home in autumn, late and heavy with salt.\n",
    "Another one counts the stones of a bridge: there are four hundred and twelve of them.\n",
    "In the third a baker asks her neighbour whether the flour from Tuesday was any good.\n",
    "Nobody answers; what remains is the sound of rain on a roof made of corrugated iron.\n",
]


def test_lines_that_were_seen_are_left_out() -> None:
    seen = SeenText([LINES[0] + LINES[2]])
    assert seen.unseen("".join(LINES)) == LINES[1] + LINES[3]


def test_a_line_of_which_a_part_was_seen_was_seen() -> None:
    assert SeenText([LINES[1][10:70]]).unseen("".join(LINES[:3])) == LINES[0] + LINES[2]


def test_other_blanks_are_the_same_text() -> None:
    assert not SeenText([LINES[0].replace(" ", "\n")]).unseen(LINES[0])


def test_short_lines_cannot_be_told_apart() -> None:
    assert SeenText([LINES[0]]).unseen("yes\n\n" + LINES[1]) == "\n" + LINES[1]


def test_tokens_are_what_they_spell() -> None:
    tokenizer = Tokenizer(builders.byte_level(), TokenizerConfig())
    ids = tokenizer.encode(LINES[0] + LINES[1])
    middle = len(tokenizer.encode(LINES[0])) // 2
    seen = SeenText.of_tokens(tokenizer, [ids[:middle], ids[middle : middle + 4]])
    assert seen.unseen("".join(LINES)) == "".join(LINES[1:])
