"""Server-sent events come out whole, however the bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hearth.client.sse import EventSplitter

PARTS = ('data: {"a": "é"}\n\n', ": comment\r\ndata: two\r\n\r\n", "id: x\ndata:b\ndata: c\n\n\n")
STREAM = "".join(PARTS).encode()
EVENTS = ['{"a": "é"}'.encode(), b"two", b"b\nc"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_the_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    splitter = EventSplitter()
    found: list[bytes] = []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(STREAM)]):
        found.extend(splitter.feed(STREAM[start:end]))
    assert found == EVENTS


def test_an_unfinished_event_is_not_given_out() -> None:
    assert EventSplitter().feed(b"data: half\n") == []
