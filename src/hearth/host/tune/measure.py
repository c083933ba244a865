"""Measures a change and keeps it where it helps: former value, new value, and again (A B A B).

Interleaved, because a machine has better and worse minutes; medians, because it has bad moments.
The rule: the medians differ by more than the spread of either side *and* by at least 2 %. What is
not better beyond that is undone, and both numbers are shown.

In the journal the change stays `begun` all the while: the place holds one of its two values, so a
crash in the middle is rolled back like any other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hearth.core.errors import HostError
from hearth.host.tune.actions import Action, put_back
from hearth.host.tune.journal import Journal
from hearth.host.tune.places import Change, Places
from hearth.host.tune.runner import Item, Outcome, Plan

ROUNDS = 7
LEAST_GAIN = 0.02
Verdict = Literal["helps", "no difference", "harms"]


class Benchmark(Protocol):
    """Something short that a setting can affect. `close` gives back what it holds."""

    name: str
    unit: str
    is_higher_better: bool

    def run(self) -> float:
        """One measurement under the present settings. Raises OSError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """Numbers with the former value and with the new one, in the order in which they were taken."""

    benchmark: str
    unit: str
    is_higher_better: bool
    former: tuple[float, ...]
    new: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Former, new."""
        return statistics.median(self.former), statistics.median(self.new)

    @property
    def spread(self) -> float:
        """The wider side's range without its two most extreme numbers on each end, if it has 5."""
        return max(_inner_range(self.former), _inner_range(self.new))

    @property
    def gain(self) -> float:
        """The share by which the new value is better; below 0: worse."""
        former, new = self.medians
        if not former:
            return 0.0
        return (new - former if self.is_higher_better else former - new) / former

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is one, and which way."""
        former, new = self.medians
        is_beyond_noise = abs(new - former) > self.spread and abs(self.gain) >= LEAST_GAIN
        if not is_beyond_noise:
            return "no difference"
        return "helps" if self.gain > 0 else "harms"

    def describe(self) -> str:
        """`readahead: 1.20 → 2.40 GB/s (spread 0.05, 7 rounds): helps`."""
        former, new = self.medians
        return (
            f"{self.benchmark}: {former:.3g} → {new:.3g} {self.unit} "
            f"(spread {self.spread:.2g}, {len(self.new)} rounds): {self.verdict}"
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of an action; `trial` None: it was not measured, for the outcome's reason."""

    name: str
    trial: Trial | None
    outcome: Outcome
    is_kept: bool


# What measures an action, or why nothing does.
Chooser = Callable[[Item], "Benchmark | str"]


def _inner_range(values: Sequence[float]) -> float:
    ordered = sorted(values)
    inner = ordered[1:-1] if len(ordered) >= 5 else ordered
    return inner[-1] - inner[0]


def measure_plan(
    plan: Plan,
    places: Places,
    journal: Journal,
    choose: Chooser,
    *,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measures each chosen change on its own and keeps what helps.

    Raises JournalError and HostError; then, too, no place is left with a value that was not kept,
    unless it cannot be put back (which the error says).
    """
    found: list[Measured] = []
    for item in plan.chosen():
        if not item.check.changes:
            continue
        bench = choose(item)
        if isinstance(bench, str):
            outcome = Outcome(item.action.name, "done", (), bench)
            found.append(Measured(item.action.name, None, outcome, False))
            continue
        tell(f"{item.action.name}: {item.check.now} against {item.check.then}")
        try:
            found.append(_measure(item, bench, places, journal, rounds))
        finally:
            bench.close()
    return found


def _measure(
    item: Item, bench: Benchmark, places: Places, journal: Journal, rounds: int
) -> Measured:
    action, changes = item.action, item.check.changes
    reason = _moved(changes, places)
    if reason:
        return Measured(action.name, None, Outcome(action.name, "undone", (), reason), False)
    ids = [journal.begin(change) for change in changes]
    trial: Trial | None = None
    problem, is_kept = "", False
    try:
        trial = _interleave(action, changes, bench, places, rounds)
        is_kept = trial.verdict == "helps"
        if is_kept:
            _set(action, changes, places)
    except OSError as error:
        problem, is_kept = f"it cannot be measured: {error.strerror or error}", False
    finally:
        # Also when somebody interrupts: what is not kept is put back, and then the journal told.
        if not is_kept:
            _reset(changes, places)
        note = trial.describe() if trial else problem or "interrupted"
        for number in ids if is_kept else reversed(ids):
            journal.mark(number, "done" if is_kept else "undone", note)
    state: Literal["done", "undone"] = "undone" if problem else "done"
    outcome = Outcome(action.name, state, changes if is_kept else (), problem)
    return Measured(action.name, trial, outcome, is_kept)


def _moved(changes: Sequence[Change], places: Places) -> str:
    """Which place is not as it was planned, or cannot be read; ""."""
    for change in changes:
        try:
            if places.read(change.kind, change.path) != change.before:
                return f"/{change.path} was changed by somebody else meanwhile"
        except OSError as error:
            return f"/{change.path} cannot be read: {error.strerror}"
    return ""


def _interleave(
    action: Action,
    changes: Sequence[Change],
    bench: Benchmark,
    places: Places,
    rounds: int,
) -> Trial:
    """A first run, which is not counted, and then former, new, former, new. Raises OSError."""
    former: list[float] = []
    new: list[float] = []
    bench.run()
    for _ in range(rounds):
        _reset(changes, places)
        former.append(bench.run())
        _set(action, changes, places)
        new.append(bench.run())
    return Trial(bench.name, bench.unit, bench.is_higher_better, tuple(former), tuple(new))


def _set(action: Action, changes: Sequence[Change], places: Places) -> None:
    """Raises OSError, also where the kernel took the value and holds another one."""
    for change in changes:
        if places.read(change.kind, change.path) != change.after:
            action.apply(places, change)
        problem = action.verify(places, change)
        if problem:
            raise OSError(0, problem)


def _reset(changes: Sequence[Change], places: Places) -> None:
    """Raises HostError where a former value cannot be put back: it stays in the journal."""
    for change in reversed(changes):
        try:
            if places.read(change.kind, change.path) != change.before:
                put_back(places, change)
        except OSError as error:
            raise HostError(
                f"/{change.path} cannot be put back to {change.before!r}: {error.strerror}",
                hint="it stands in the journal: hearth tune --rollback",
            ) from error
