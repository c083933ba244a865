"""Graphs are captured when they are needed, used where they fit, and left out with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.plan_builder import Chunk, PlanBuilder, Track

from hearth.core.step import StepPlan
from hearth.kernels.triton.graphs import Graph, GraphBook, graph_sizes
from hearth.kernels.triton.plan_buffer import has_single_rows, wants_every_row


@dataclass
class Log:
    """What was captured and replayed, in order."""

    events: list[str] = field(default_factory=list)
    fails: bool = False

    def capture(self, rows: int) -> Graph:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.events.append(f"capture {rows}")
        return _Replayed(self, rows)


@dataclass
class _Replayed:
    log: Log
    rows: int

    def replay(self) -> None:
        self.log.events.append(f"replay {self.rows}")


def decode(num_rows: int, wanted: int | None = None, *, first: int = 1) -> StepPlan:
    """A step of `num_rows` sequences, the first of which takes `first` tokens."""
    chunks = [
        Chunk(Track([1] * 8), first if i == 0 else 1, (0,) if wanted is None or i < wanted else ())
        for i in range(num_rows)
    ]
    return PlanBuilder(16, 64).plan(chunks)


def run(book: GraphBook, plan: StepPlan, log: Log) -> int | None:
    route = book.route(plan, is_decode=has_single_rows(plan), wants_all=wants_every_row(plan))
    book.run(route, lambda: log.events.append("eager"))
    return route.rows


def test_a_size_runs_eagerly_once_and_is_then_captured_and_replayed() -> None:
    log = Log()
    book = GraphBook((1, 2, 4), log.capture)
    for _ in range(3):
        assert run(book, decode(3), log) == 4
    assert log.events == ["eager", "capture 4", "replay 4", "replay 4"]
    assert book.captured == (4,)
    assert book.counts == {
        "first of its size: kernels are compiled": 1,
        "captured": 1,
        "graph": 1,
    }


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (decode(2, first=3), "a sequence has several rows"),
        (decode(3, wanted=2), "some rows' logits are not wanted"),
        (decode(5), "more rows than the largest graph's 4"),
    ],
)
def test_what_has_no_graph_runs_as_it_is(plan: StepPlan, reason: str) -> None:
    log = Log()
    book = GraphBook((1, 2, 4), log.capture)
    assert [run(book, plan, log) for _ in range(2)] == [None, None]
    assert log.events == ["eager", "eager"]
    assert book.counts == {reason: 2}


def test_a_capture_that_fails_leaves_its_size_to_eager_steps_and_says_why() -> None:
    log = Log(fails=True)
    book = GraphBook((1, 2), log.capture)
    for _ in range(3):
        run(book, decode(2), log)
    log.fails = False
    run(book, decode(1), log)
    run(book, decode(1), log)
    assert log.events == ["eager"] * 4 + ["capture 1", "replay 1"]
    failed = "the capture failed: operation not permitted when stream is capturing"
    assert book.counts[failed] == 1


def test_without_a_capture_every_step_says_why_not() -> None:
    log = Log()
    book = GraphBook((1, 2), None, "there is no card")
    assert run(book, decode(2), log) is None
    assert book.counts == {"there is no card": 1}


@given(st.integers(1, 4096))
def test_sizes_rise_up_to_the_most_sequences(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    assert _worst_padding(sizes) <= 32
    assert len(sizes) < 24 + most / 32


def _worst_padding(sizes: Sequence[int]) -> int:
    return max(size - before for before, size in zip((0, *sizes), sizes))
