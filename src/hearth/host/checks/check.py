"""Check: one judgement with what was measured, what is wanted, why, and what fixes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from hearth.host.checks.needs import ModelNeeds
from hearth.host.facts.fact import Fact
from hearth.host.facts.report import HostFacts
from hearth.host.profile import MachineProfile

T = TypeVar("T")


class Level(StrEnum):
    """How bad it is; UNKNOWN where the host does not tell, or nothing says what would be enough."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARN = "warn"
    FAIL = "fail"


_SEVERITY = (Level.OK, Level.UNKNOWN, Level.WARN, Level.FAIL)


@dataclass(frozen=True, slots=True)
class Fix:
    """What mends it. `how`: pip, conda, shell, tune and hearth (commands), or hint (words)."""

    how: str
    command: str


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's table. `name` is stable; `wanted` says "customary" where it is."""

    name: str
    area: str
    level: Level
    measured: str
    wanted: str
    why: str
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightCacheSpace:
    """Where packed weights are kept, and how many bytes of them are at most."""

    directory: str
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Examined:
    """What is judged. `needs` None: no model was named; `profile` None: nothing was measured.

    `weight_cache` None: it is not known where packed weights would be kept.
    """

    facts: HostFacts
    needs: ModelNeeds | None = None
    profile: MachineProfile | None = None
    weight_cache: WeightCacheSpace | None = None


CheckFunction = Callable[[Examined], tuple[Check, ...]]


def worst(checks: tuple[Check, ...]) -> Level:
    """The worst level; OK without checks."""
    return max((check.level for check in checks), key=_SEVERITY.index, default=Level.OK)


def serve_fix(examined: Examined, flags: str = "") -> Fix:
    """The command that serves the model, or any, with these flags."""
    name = "MODEL" if examined.needs is None else shlex.quote(examined.needs.name)
    return Fix("hearth", f"hearth serve {name} {flags}".rstrip())


def tune_fix(action: str, *, persist: bool = False, models_dir: str = "") -> Fix:
    """The command that changes a setting of the host; sudo's own path may lack hearth.

    `models_dir`: whose disk is meant, where that matters; root has another home.
    """
    more = " --persist" if persist else ""
    where = f" --models-dir {shlex.quote(models_dir)}" if models_dir else ""
    return Fix("tune", f'sudo "$(command -v hearth)" tune --only {action} --apply{more}{where}')


def shown(fact: Fact[T], text: Callable[[T], str] = str) -> str:
    """The value for a table, or that it is unknown and why."""
    return f"unknown: {fact.why}" if fact.value is None else text(fact.value)
