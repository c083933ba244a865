"""Stop strings end the text at the same place, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hearth.engine.text.stop import StopMatcher


def plain_reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Grows the text character by character and looks whether it ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


small = st.text(alphabet="ab<中", max_size=30)


@given(small, st.lists(st.text(alphabet="ab<中", min_size=1, max_size=5), max_size=4), st.data())
def test_equals_the_plain_reference_for_any_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher = StopMatcher(stops)
    given_out, start = "", 0
    while start < len(text):
        size = data.draw(st.integers(1, 6))
        given_out += matcher.feed(text[start : start + size])
        start += size
    given_out += matcher.flush()
    assert (given_out, matcher.matched) == plain_reference(text, stops)


@given(small, st.lists(st.text(alphabet="ab<中", min_size=1, max_size=5), min_size=1, max_size=4))
def test_nothing_given_out_belongs_to_a_stop_string_and_no_more_is_held_than_needed(
    text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    given_out = ""
    for index, char in enumerate(text):
        given_out += matcher.feed(char)
        if matcher.matched is not None:
            break
        held = text[len(given_out) : index + 1]
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


def test_text_that_could_become_a_stop_string_is_held_until_it_cannot() -> None:
    matcher = StopMatcher(["</answer>"])
    assert matcher.feed("done</ans") == "done"
    assert matcher.feed("wers>") == "</answers>"
    assert matcher.feed("</answer") == ""
    assert matcher.flush() == "</answer"


def test_after_a_match_everything_is_swallowed() -> None:
    matcher = StopMatcher(["STOP", "\n"])
    assert matcher.feed("one ST") == "one "
    assert matcher.feed("OP two\n") == ""
    assert matcher.matched == "STOP"
    assert matcher.feed("three") == ""
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_at_once() -> None:
    assert StopMatcher([]).feed("a") == "a"
