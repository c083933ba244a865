"""Frames over a socket pair: cut anywhere, congested, ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.core.errors import CapacityError, EngineError, HearthError, WeightsError
from hearth.core.request import FinishReason, Request, TokenEvent
from hearth.engine.connection import CONGESTED_BYTES, Connection
from hearth.engine.messages import (
    Cancel,
    Events,
    FrameSplitter,
    Shutdown,
    Submit,
    WireEvent,
    encode_frame,
    error_from,
    failed_from,
)


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield Connection(ours), theirs


@given(st.lists(st.integers(1, 9), max_size=30))
def test_frames_may_be_cut_anywhere(cuts: list[int]) -> None:
    request = Request("r", (1, 2, 3), 4, stop_token_ids=frozenset({7}), cache_key=b"\0x")
    stream = encode_frame(Submit(request)) + encode_frame(Cancel("r")) + encode_frame(Shutdown())
    splitter = FrameSplitter()
    payloads: list[bytes] = []
    for cut in [*cuts, len(stream)]:
        payloads += splitter.feed(stream[:cut])
        stream = stream[cut:]
    decoded = [msgspec.msgpack.decode(p, type=Submit | Cancel | Shutdown) for p in payloads]
    assert decoded == [Submit(request), Cancel("r"), Shutdown()]


def test_a_stream_out_of_step_is_noticed() -> None:
    with pytest.raises(EngineError, match="out of step"):
        FrameSplitter().feed(b"\xff\xff\xff\xff")


def test_events_cross_the_border_unchanged() -> None:
    wire = WireEvent("r", (5,), FinishReason.STOP, 7, 3, "m", "c", (1 << 63,))
    frame = encode_frame(Events([wire]))
    (back,) = msgspec.msgpack.decode(frame[4:], type=Events).events
    assert back.to_event() == TokenEvent("r", (5,), FinishReason.STOP, 7, 3, "m", "c", (1 << 63,))


@pytest.mark.parametrize("kind", [CapacityError, WeightsError])
def test_errors_cross_the_border_as_what_they_are(kind: type[HearthError]) -> None:
    error = error_from(failed_from(kind("too little", hint="more")))
    assert type(error) is kind
    assert (error.message, error.hint) == ("too little", "more")


def test_what_the_other_side_does_not_take_makes_the_connection_congested(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, other = pair
    event = WireEvent("r" * 1000, (1,))
    num_sent = 0
    while not connection.is_congested:
        connection.send(Events([event] * 20))
        num_sent += 20
    assert num_sent * 1000 > CONGESTED_BYTES
    splitter = FrameSplitter()
    num_received = 0
    while num_received < num_sent:
        for payload in splitter.feed(other.recv(1 << 20)):
            num_received += len(msgspec.msgpack.decode(payload, type=Events).events)
        assert connection.receive(wait=False) == []  # sends on what is left
    assert not connection.is_congested


def test_the_end_of_the_other_side_is_an_eof(pair: tuple[Connection, socket.socket]) -> None:
    connection, other = pair
    other.sendall(encode_frame(Cancel("r")))
    assert connection.receive(wait=True) == [Cancel("r")]
    assert connection.receive(wait=False) == []
    other.close()
    with pytest.raises(EOFError):
        connection.receive(wait=True)
    with pytest.raises(EOFError):
        connection.send(Events([]))
