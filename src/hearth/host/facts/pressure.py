"""Pressure: whether processes wait for the processor, for memory, or for disks.

Averages since the boot say what is usual here; with an earlier `Counters` the figures are those of
the time between, which is what goes on now.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.host.facts.fact import Fact, Tree, unknown
from hearth.host.files import whole_number

SLOW_ANSWER_MS = 10.0
_BLOCK = "sys/block"
_MOST_COUNTED = 1 << 60
_NO_DISKS = ("loop", "ram", "zram", "sr", "fd", "nbd")


@dataclass(frozen=True, slots=True)
class Stall:
    """Shares of time, in percent over 10 and 60 seconds, in which some or all tasks waited."""

    some_avg10: float
    some_avg60: float
    full_avg10: float
    full_avg60: float


@dataclass(frozen=True, slots=True)
class DiskAnswer:
    """How long a disk's requests took, on the mean."""

    disk: str
    num_requests: int
    mean_ms: float

    @property
    def is_slow(self) -> bool:
        """Whether it answers later than an SSD of any kind would."""
        return self.mean_ms > SLOW_ANSWER_MS


@dataclass(frozen=True, slots=True)
class PressureFacts:
    """`io_wait_share`: of the processors' time, 0 to 1, spent idle while a disk was waited for."""

    cpu: Fact[Stall]
    memory: Fact[Stall]
    io: Fact[Stall]
    io_wait_share: Fact[float]
    disk_answers: Fact[tuple[DiskAnswer, ...]]


@dataclass(frozen=True, slots=True)
class Counters:
    """What the kernel has counted since the boot."""

    cpu_ticks: Fact[tuple[int, ...]]  # user, nice, system, idle, iowait, irq, softirq, steal
    disks: tuple[tuple[str, tuple[int, int]], ...]  # name, (requests, milliseconds)


def read_counters(root: Path = Path("/")) -> Counters:
    """Reads the counters, for a later `read_pressure`."""
    tree = Tree(root)
    disks: list[tuple[str, tuple[int, int]]] = []
    for name in tree.names(_BLOCK):
        if not name.startswith(_NO_DISKS):
            counts = tree.text(f"{_BLOCK}/{name}/stat").then(_disk_counts).value
            if counts is not None:
                disks.append((name, counts))
    return Counters(tree.text("proc/stat").then(_cpu_ticks, "no cpu line"), tuple(disks))


def read_pressure(root: Path = Path("/"), earlier: Counters | None = None) -> PressureFacts:
    """Reads the pressure; `earlier`: see the module's docstring."""
    tree = Tree(root)
    now = read_counters(root)
    since = "since boot" if earlier is None else "since this command began"
    return PressureFacts(
        cpu=tree.text("proc/pressure/cpu").then(_stall, "no averages"),
        memory=tree.text("proc/pressure/memory").then(_stall, "no averages"),
        io=tree.text("proc/pressure/io").then(_stall, "no averages"),
        io_wait_share=_io_wait(now, earlier, since),
        disk_answers=_answers(now, earlier, since),
    )


def _io_wait(now: Counters, earlier: Counters | None, since: str) -> Fact[float]:
    source = f"iowait in /proc/stat, {since}"
    ticks = now.cpu_ticks.value
    if ticks is None:
        return unknown(source, now.cpu_ticks.why)
    before = None if earlier is None else earlier.cpu_ticks.value
    spent = [a - b for a, b in zip(ticks, before or (0,) * len(ticks))]
    total = sum(spent)
    if total <= 0 or spent[4] < 0:  # the kernel may take a little of iowait back
        return unknown(source, "no time was counted")
    return Fact(min(1.0, spent[4] / total), source)


def _answers(now: Counters, earlier: Counters | None, since: str) -> Fact[tuple[DiskAnswer, ...]]:
    source = f"/{_BLOCK}/*/stat, {since}"
    before = dict(earlier.disks) if earlier is not None else {}
    found: list[DiskAnswer] = []
    for name, (requests, milliseconds) in now.disks:
        old_requests, old_milliseconds = before.get(name, (0, 0))
        count, time_ms = requests - old_requests, milliseconds - old_milliseconds
        if count > 0 and time_ms >= 0:
            found.append(DiskAnswer(name, count, round(time_ms / count, 3)))
    if not found:
        return unknown(source, "no disk there" if not now.disks else "no request was counted")
    return Fact(tuple(found), source)


def _cpu_ticks(text: str) -> tuple[int, ...] | None:
    for line in text.splitlines():
        name, *rest = line.split() or [""]
        if name == "cpu":
            numbers = [whole_number(word) for word in rest[:8]]
            known = tuple(n for n in numbers if n is not None and n >= 0)
            return known if len(known) == len(rest[:8]) >= 5 else None
    return None


def _disk_counts(text: str) -> tuple[int, int] | None:
    """Reads and writes that were completed, and their milliseconds (Documentation/block/stat)."""
    numbers = [whole_number(word) for word in text.split()[:8]]
    known = [n for n in numbers if n is not None and 0 <= n < _MOST_COUNTED]
    if len(known) != 8:
        return None
    return known[0] + known[4], known[3] + known[7]


def _stall(text: str) -> Stall | None:
    """The averages of lines like `some avg10=0.12 avg60=0.05 avg300=0.01 total=1234`."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        for word in words:
            name, _, value = word.partition("=")
            share = _percent(value)
            if share is not None:
                found[f"{kind}_{name}"] = share
    if "some_avg10" not in found:
        return None
    names = ("some_avg10", "some_avg60", "full_avg10", "full_avg60")
    # Kernels before 5.13 have no `full` of the processor.
    return Stall(*(found.get(name, 0.0) for name in names))


def _percent(text: str) -> float | None:
    digits = text.replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        return None
    return min(100.0, float(text))
