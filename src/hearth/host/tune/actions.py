"""An action: one setting, what it should be here, and how it gets there and back.

`check` only reads. `apply`, `verify` and `rollback` act on one change of those that `check` found;
the journal and their order are the runner's business. What each setting does and why it is or is
not applied by default stands in `catalog`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hearth.host.tune.places import Change, Kind, Places

# change: to be changed now and, with --persist, for good; persist: only for good; ok: as it should
# be, or already further; absent: there is no such setting here; locked: there, but cannot be
# changed from here.
State = Literal["change", "persist", "ok", "absent", "locked"]


@dataclass(frozen=True, slots=True)
class HostView:
    """What actions look at, beside the places themselves.

    `device`: number (major, minor) of the file system that holds `models_dir`; `hugepages_bytes`:
    what the pool is to hold, None where nobody says, and `hugepages_note` who does;
    `available_bytes`: free memory.
    """

    places: Places
    models_dir: Path
    device: tuple[int, int] | None
    soft_open_files: int
    hard_open_files: int
    hugepages_bytes: int | None = None
    available_bytes: int | None = None
    euid: int = 0
    hugepages_note: str = ""


@dataclass(frozen=True, slots=True)
class FileLine:
    """A line of a file that is read at the boot. Another line with the same `key` gives way."""

    file: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """What was found, and what would be changed.

    `now` and `then` are for people; `lines` are those of `--persist`.
    """

    state: State
    now: str
    then: str
    changes: tuple[Change, ...] = ()
    lines: tuple[FileLine, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """One setting. `why`: what it does; `against`: why it is not applied unless it is named."""

    name: str
    setting: str
    why: str
    effect: str
    find: Callable[[HostView, str], Check]
    against: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it is applied where no setting is named."""
        return not self.against

    def check(self, view: HostView) -> Check:
        """Reads what is there; changes nothing. What cannot be read is locked, and says why."""
        try:
            found = self.find(view, self.name)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            return Check("locked", "unknown", "", notes=(reason,))
        locked = [c for c in found.changes if not view.places.is_writable(c.path)]
        if locked and view.euid == 0:  # for others everything is locked: that is said once
            note = f"/{locked[0].path} is read-only here (a container?): change it on the host"
            return Check("locked", found.now, found.then, notes=(*found.notes, note))
        return found

    def apply(self, places: Places, change: Change) -> None:
        """Raises OSError."""
        places.write(change.kind, change.path, change.after)

    def verify(self, places: Places, change: Change) -> str:
        """Reads the place back; "" or what is wrong. Raises OSError."""
        found = places.read(change.kind, change.path)
        if found == change.after:
            return ""
        return f"/{change.path} holds {found!r} after {change.after!r} was written to it"

    def rollback(self, places: Places, change: Change) -> None:
        """Raises OSError."""
        put_back(places, change)


def put_back(places: Places, change: Change) -> None:
    """The former value, whoever has changed it since; raises OSError where it does not hold."""
    places.write(change.kind, change.path, change.before)
    found = places.read(change.kind, change.path)
    if found != change.before:
        raise OSError(0, f"it holds {found!r} after {change.before!r} was written to it")


def absent(reason: str) -> Check:
    """There is no such setting here."""
    return Check("absent", "not available here", "", notes=(reason,))


def number_of(text: str) -> int:
    """A kernel's number; raises OSError for what is none, as for what cannot be read."""
    try:
        return int(text)
    except ValueError as error:
        raise OSError(0, f"{text!r} is not a number") from error


@dataclass(frozen=True, slots=True)
class Place:
    """A place and the file line that sets it at the boot; no line where none can."""

    kind: Kind
    path: str
    line: Callable[[str], FileLine] | None


def move(view: HostView, name: str, place: Place, target: int, *, upwards: bool = True) -> Check:
    """A number that is to be at least `target` (at most, unless `upwards`). Raises OSError.

    What is already further stays as it is, and is not written to files either: at the next boot
    they would take it back.
    """
    now = view.places.read(place.kind, place.path)
    if now is None:
        return absent(f"there is no /{place.path}")
    number = number_of(now)
    is_further = number > target if upwards else number < target
    if is_further:
        return Check("ok", now, now, notes=(f"already beyond {target}",))
    lines = () if place.line is None else (place.line(str(target)),)
    if number == target:
        return Check("ok", now, now, lines=lines)
    change = Change(name, place.kind, place.path, now, str(target))
    return Check("change", now, str(target), (change,), lines)


def view_of(
    places: Places,
    models_dir: Path,
    *,
    hugepages_bytes: int | None = None,
    available_bytes: int | None = None,
    hugepages_note: str = "",
) -> HostView:
    """The view of this process on this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HostView(
        places,
        models_dir,
        _device_of(models_dir),
        soft,
        hard,
        hugepages_bytes,
        available_bytes,
        os.geteuid(),
        hugepages_note,
    )


def _device_of(directory: Path) -> tuple[int, int] | None:
    """Of the nearest directory above that exists."""
    for path in (directory, *directory.parents):
        try:
            number = path.stat().st_dev
        except OSError:
            continue
        return os.major(number), os.minor(number)
    return None
