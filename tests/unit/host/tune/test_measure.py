"""Which changes are kept: with numbers that are given, and the real benchmarks made small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.tune.crashes import journal_of
from tests.unit.host.tune.trees import FakeKernel, lay_out, plan_of, snapshot, view_of

from hearth.core.errors import HostError
from hearth.host.tune import benchmarks
from hearth.host.tune.benchmarks import ColdFileRead, ConnectionBurst, choose_benchmark
from hearth.host.tune.journal import open_journal, read_entries
from hearth.host.tune.measure import Benchmark, Measured, Trial, measure_plan
from hearth.host.tune.places import Places
from hearth.host.tune.runner import Item, roll_back

SWAPPINESS = "proc/sys/vm/swappiness"


class Given:
    """Numbers by the value that the setting has; `seen` has the order."""

    name, unit, is_higher_better = "speed", "GB/s", True

    def __init__(self, places: Places, numbers: dict[str, list[float]]) -> None:
        self._places = places
        self._numbers: dict[str, Iterator[float]] = {k: iter(v) for k, v in numbers.items()}
        self.seen: list[str] = []
        self.is_closed = False

    def run(self) -> float:
        value = self._places.read("value", SWAPPINESS) or ""
        self.seen.append(value)
        if len(self.seen) == 1:
            return 0.0  # the first run is not counted
        return next(self._numbers[value])

    def close(self) -> None:
        self.is_closed = True


def measure(places: Places, bench: Benchmark | str, rounds: int = 5) -> list[Measured]:
    plan = plan_of(places, frozenset({"swappiness"}))
    with open_journal(journal_of(places.root)) as journal:
        return measure_plan(plan, places, journal, lambda _: bench, rounds=rounds)


def test_what_helps_is_kept_and_both_numbers_are_there(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    bench = Given(kernel, {"60": [1.0, 1.1, 1.0, 0.9, 1.0], "10": [2.0, 2.1, 2.0, 1.9, 2.0]})
    (found,) = measure(kernel, bench)
    assert bench.seen == ["60", *["60", "10"] * 5]
    assert found.is_kept
    assert found.trial is not None
    assert found.trial.medians == (1.0, 2.0)
    assert kernel.read("value", SWAPPINESS) == "10"
    assert bench.is_closed
    (_, mark) = journal_of(tmp_path).read_text().splitlines()
    assert json.loads(mark)["note"] == found.trial.describe()
    with open_journal(journal_of(tmp_path)) as journal:
        roll_back(kernel, journal)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([1.0, 1.1, 1.0, 0.9, 1.0], "no difference"),
        ([1.01, 1.01, 1.01, 1.01, 1.01], "no difference"),  # less than 2 %
        ([0.5, 0.5, 0.5, 0.5, 0.5], "harms"),
        ([1.1, 0.1, 3.0, 1.5, 0.7], "no difference"),  # better by less than its own spread
    ],
)
def test_what_does_not_help_is_undone(tmp_path: Path, new: list[float], verdict: str) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    (found,) = measure(kernel, Given(kernel, {"60": [1.0] * 5, "10": new}))
    assert found.trial is not None
    assert (found.trial.verdict, found.is_kept) == (verdict, False)
    assert snapshot(tmp_path) == before
    assert [entry.state for entry in read_entries(journal_of(tmp_path))] == ["undone"]


def test_where_less_is_better_less_helps() -> None:
    trial = Trial("time", "s", False, (2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    assert (trial.verdict, trial.gain) == ("helps", 0.5)
    assert trial.describe() == "time: 2 → 1 s (spread 0, 3 rounds): helps"
    assert Trial("time", "s", False, (1.0,), (2.0,)).verdict == "harms"


def test_one_bad_moment_does_not_hide_an_effect() -> None:
    assert Trial("x", "s", False, (2.0, 2.1, 9.0, 2.0, 2.1), (1.0,) * 5).verdict == "helps"


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_the_same_numbers_are_never_a_difference(numbers: list[float]) -> None:
    both = tuple(numbers)
    assert Trial("x", "s", True, both, both).verdict == "no difference"


def test_what_cannot_be_measured_is_left_alone_and_says_why(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    (found,) = measure(kernel, "it is a limit")
    assert (found.trial, found.is_kept, found.outcome.reason) == (None, False, "it is a limit")
    assert snapshot(tmp_path) == before


class Failing(Given):
    def __init__(self, places: Places, error: BaseException) -> None:
        super().__init__(places, {"60": [1.0] * 9, "10": [1.0] * 9})
        self._error = error

    def run(self) -> float:
        if len(self.seen) == 4:  # while the new value is there
            assert self._places.read("value", SWAPPINESS) == "10"
            raise self._error
        return super().run()


def test_a_benchmark_that_fails_leaves_the_former_value(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    bench = Failing(kernel, OSError(12, "Cannot allocate memory"))
    (found,) = measure(kernel, bench)
    assert found.outcome.state == "undone"
    assert "Cannot allocate memory" in found.outcome.reason
    assert snapshot(tmp_path) == before
    assert bench.is_closed


def test_an_interrupt_leaves_the_former_value(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        measure(kernel, Failing(kernel, KeyboardInterrupt()))
    assert snapshot(tmp_path) == before
    assert [entry.state for entry in read_entries(journal_of(tmp_path))] == ["undone"]


def test_a_crash_in_the_middle_is_rolled_back(tmp_path: Path) -> None:
    """The journal says `begun` all the while, whatever the place holds."""
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)

    class Looking(Given):
        def run(self) -> float:
            states = [entry.state for entry in read_entries(journal_of(tmp_path))]
            assert states == ["begun"]
            return super().run()

    measure(kernel, Looking(kernel, {"60": [1.0] * 5, "10": [2.0] * 5}))
    path = journal_of(tmp_path)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with open_journal(path) as journal:
        assert [found.state for found in roll_back(kernel, journal)] == ["restored"]
    assert snapshot(tmp_path) == before


def test_a_value_that_cannot_be_put_back_is_an_error_and_stays_in_the_journal(
    tmp_path: Path,
) -> None:
    class Stubborn(FakeKernel):
        def write_kernel(self, where: Path, text: str) -> None:
            if text == "60":
                raise OSError(1, "Operation not permitted")
            super().write_kernel(where, text)

    lay_out(tmp_path)
    kernel = Stubborn(tmp_path)
    bench = Given(kernel, {"60": [1.0] * 5, "10": [1.0] * 5})
    with pytest.raises(HostError, match="cannot be put back") as caught:
        measure(kernel, bench)
    assert "--rollback" in str(caught.value.hint)
    assert [entry.state for entry in read_entries(journal_of(tmp_path))] == ["begun"]


def item(places: Places, name: str) -> Item:
    return next(i for i in plan_of(places).items if i.action.name == name)


@pytest.mark.parametrize("name", ["nofile", "file-max", "swappiness", "hugepages"])
def test_what_has_no_speed_is_not_measured(tmp_path: Path, name: str) -> None:
    kernel = lay_out(tmp_path)
    assert "left as it is" in str(choose_benchmark(view_of(kernel), item(kernel, name)))


def test_a_burst_needs_open_files(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    found = choose_benchmark(view_of(kernel), item(kernel, "somaxconn"))
    assert "need 10292 open files, the limit is 4096" in str(found)


@pytest.mark.parametrize("bench", [benchmarks.MemoryRead, benchmarks.MemoryFill])
def test_memory_is_read_and_given_back(
    monkeypatch: pytest.MonkeyPatch, bench: type[Benchmark]
) -> None:
    monkeypatch.setattr(benchmarks, "MEMORY_BYTES", 4 << 20)
    assert bench().run() > 0


def test_a_file_is_read_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bench = ColdFileRead(tmp_path, 2 << 20)
    assert bench.run() > 0
    assert list(tmp_path.iterdir()) == []
    bench.close()


def test_a_disk_without_space_is_not_measured(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "FILE_BYTES", 1 << 60)
        found = choose_benchmark(view_of(kernel), item(kernel, "readahead"))
    assert "too little free space" in str(found)


def test_connections_come_through_and_a_backlog_that_is_too_small_costs_a_second() -> None:
    large, small = ConnectionBurst(40), ConnectionBurst(40, backlog=30)
    try:
        assert large.run() < 0.9 < small.run()
    finally:
        small.close()
        large.close()
