"""Whether this host is busy now."""

from __future__ import annotations

from hearth.host.checks.check import Check, Examined, Fix, Level, shown
from hearth.host.facts.fact import Fact
from hearth.host.facts.pressure import SLOW_ANSWER_MS, DiskAnswer, Stall

AREA = "pressure"
# Percent of a minute in which some task waited. A server that decodes wants every core at once:
# a fifth of the time lost to others is felt; memory pressure of any length is reclaim or swap.
_MOST_STALL = {"cpu": 20.0, "memory": 1.0, "io": 20.0}
_WHY = {
    "cpu": "other programs take the cores: threads that meet after every operation wait for them",
    "memory": "the kernel takes pages back while programs wait: weights may be read again",
    "io": "programs wait for disks: models load slowly",
}
_MOST_IO_WAIT = 0.1
_LEAST_REQUESTS = 10  # of which a mean says anything
_FIND = {
    "cpu": "ps aux --sort=-%cpu | head",
    "memory": "ps aux --sort=-rss | head",
    "io": "sudo iotop -obn 3",
}


def check_stalls(examined: Examined) -> tuple[Check, ...]:
    """Pressure stall information (PSI) of the last minute."""
    pressure = examined.facts.pressure
    areas: dict[str, Fact[Stall]] = {
        "cpu": pressure.cpu,
        "memory": pressure.memory,
        "io": pressure.io,
    }
    return tuple(_stall(name, fact) for name, fact in areas.items())


def _stall(name: str, fact: Fact[Stall]) -> Check:
    most = _MOST_STALL[name]
    is_high = fact.value is not None and fact.value.some_avg60 > most
    level = Level.UNKNOWN if fact.value is None else Level.WARN if is_high else Level.OK
    return Check(
        f"{name} pressure",
        AREA,
        level,
        shown(fact, lambda s: f"{s.some_avg10:g} % of 10 s, {s.some_avg60:g} % of 60 s"),
        f"at most {most:g} % of 60 s",
        _WHY[name],
        (Fix("shell", _FIND[name]),) if is_high else (),
    )


def check_io_wait(examined: Examined) -> tuple[Check, ...]:
    """The share of the processors' time in which a disk was waited for."""
    share = examined.facts.pressure.io_wait_share
    # Of a fifth of a second one slow request is a large share: tasks must have waited longer, too.
    stall = examined.facts.pressure.io.value
    is_lasting = stall is None or stall.some_avg10 > 100 * _MOST_IO_WAIT
    is_high = share.value is not None and share.value > _MOST_IO_WAIT and is_lasting
    level = Level.UNKNOWN if share.value is None else Level.WARN if is_high else Level.OK
    return (
        Check(
            "I/O wait",
            AREA,
            level,
            f"{shown(share, lambda s: f'{s:.1%}')} ({share.source})",
            f"at most {_MOST_IO_WAIT:.0%}",
            "processors that wait for disks mean storage that is too slow for its load",
            (Fix("shell", _FIND["io"]),) if is_high else (),
        ),
    )


def check_disk_answers(examined: Examined) -> tuple[Check, ...]:
    """How long the disks' requests take."""
    answers = examined.facts.pressure.disk_answers
    slow = [a for a in answers.value or () if a.is_slow and a.num_requests >= _LEAST_REQUESTS]
    level = Level.UNKNOWN if answers.value is None else Level.WARN if slow else Level.OK

    def text(found: tuple[DiskAnswer, ...]) -> str:
        return ", ".join(f"{a.disk} {a.mean_ms:.1f} ms" for a in found)

    return (
        Check(
            "disk answer time",
            AREA,
            level,
            f"{shown(answers, text)} ({answers.source})",
            f"at most {SLOW_ANSWER_MS:g} ms on the mean",
            "an SSD answers in less than a millisecond; what takes longer is a rotating, remote "
            "or overloaded disk, and models load from it slowly",
            (Fix("shell", _FIND["io"]),) if slow else (),
        ),
    )
