"""Plans, applies and rolls back: the order of journal and changes, and what a failure leaves.

    apply, for each change:   still as planned? ─ journal: begun ─ write ─ read back ─ journal: done
    roll back, last first:    as it was before? as hearth left it? ─ write ─ read back ─
                              journal: undone;   anything else: somebody's, left alone unless forced

A crash anywhere leaves the journal with an entry for every change that may have happened. An action
that fails is undone at once, the others stay. Nothing here knows which settings there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hearth.core.errors import PrivilegeError
from hearth.host.tune.actions import Action, Check, FileLine, HostView, put_back
from hearth.host.tune.journal import Entry, Journal
from hearth.host.tune.persist import FilePlan, notes_on, plan_files
from hearth.host.tune.places import Change, Places

# done: changed, or nothing to do; undone: failed, and as it was before; stuck: failed, and what was
# changed before the failure could not be put back.
OutcomeState = Literal["done", "undone", "stuck"]
# restored, already (as it was before), gone (there is no such place any more), kept (changed by
# somebody since, or not empty), failed.
RestoreState = Literal["restored", "already", "gone", "kept", "failed"]


@dataclass(frozen=True, slots=True)
class Item:
    """An action, what it found, and whether it is among those to be applied."""

    action: Action
    check: Check
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be changed. `files` and their `notes` only where they are to be written."""

    items: tuple[Item, ...]
    files: tuple[FilePlan, ...] = ()
    notes: tuple[str, ...] = ()

    def chosen(self) -> list[Item]:
        """The items that are to be applied and can be."""
        return [i for i in self.items if i.is_chosen and i.check.state not in ("absent", "locked")]

    def locked(self) -> list[Item]:
        """The items that are to be applied and cannot be changed from here."""
        return [i for i in self.items if i.is_chosen and i.check.state == "locked"]

    def changes(self) -> list[Change]:
        """All changes, in the order in which they would be made."""
        values = [change for item in self.chosen() for change in item.check.changes]
        return [*values, *(change for file in self.files for change in file.changes)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action, or of a file."""

    name: str
    state: OutcomeState
    changes: tuple[Change, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a change that was to be taken back."""

    change: Change
    state: RestoreState
    reason: str = ""

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do for this change."""
        return self.state in ("restored", "already", "gone")


def require_root(euid: int, commands: Sequence[str]) -> None:
    """Raises PrivilegeError for anybody else; `commands`: what root would have to run."""
    if euid != 0:
        told = "" if not commands else ":\n    " + "\n    ".join(commands)
        raise PrivilegeError(
            "settings of this machine can be changed by root only; nothing was changed",
            hint=f"run as root{told}",
        )


def make_plan(
    view: HostView, actions: Sequence[Action], chosen: frozenset[str], *, persist: bool = False
) -> Plan:
    """Checks all actions; changes nothing."""
    items = tuple(Item(a, a.check(view), a.name in chosen) for a in actions)
    plan = Plan(items)
    if not persist:
        return plan
    lines = [line for item in plan.chosen() for line in item.check.lines]
    notes = tuple(notes_on(view.places, lines))
    return Plan(items, tuple(plan_files(view.places, lines)), notes)


def apply_plan(plan: Plan, places: Places, journal: Journal, *, persist: bool) -> list[Outcome]:
    """Applies the chosen actions and, for those that did not fail, writes files.

    Raises JournalError: what has been changed until then is in the journal.
    """
    outcomes: list[Outcome] = []
    lines: list[FileLine] = []
    for item in plan.chosen():
        outcome = apply_changes(item.action, item.check.changes, places, journal)
        outcomes.append(outcome)
        if outcome.state == "done":
            lines += item.check.lines
    return [*outcomes, *write_files(lines, places, journal)] if persist else outcomes


def write_files(lines: Sequence[FileLine], places: Places, journal: Journal) -> list[Outcome]:
    """Writes the files that hold these lines. Raises JournalError."""
    outcomes: list[Outcome] = []
    for file in plan_files(places, lines):
        if file.problem:
            outcomes.append(Outcome(f"/{file.path}", "undone", (), file.problem))
        else:
            writer = _FileWriter(f"/{file.path}")
            outcomes.append(apply_changes(writer, file.changes, places, journal))
    return outcomes


def apply_changes(
    action: Action | _FileWriter, changes: Sequence[Change], places: Places, journal: Journal
) -> Outcome:
    """All changes of one action, or none. Raises JournalError."""
    made: list[tuple[int, Change]] = []
    for change in changes:
        try:
            if places.read(change.kind, change.path) != change.before:
                problem = f"/{change.path} was changed by somebody else meanwhile"
            else:
                made.append((journal.begin(change), change))
                action.apply(places, change)
                problem = action.verify(places, change)
        except OSError as error:
            problem = f"/{change.path}: {_text_of(error)}"
        if problem:
            return _undo(action, tuple(changes), made, problem, places, journal)
        journal.mark(made[-1][0], "done")
    return Outcome(action.name, "done", tuple(changes))


def _undo(
    action: Action | _FileWriter,
    changes: tuple[Change, ...],
    made: list[tuple[int, Change]],
    problem: str,
    places: Places,
    journal: Journal,
) -> Outcome:
    """Takes back what a failed action has done so far, last first; goes on after a failure."""
    stuck: list[str] = []
    for number, change in reversed(made):
        try:
            if places.read(change.kind, change.path) != change.before:
                action.rollback(places, change)
            places.clean(change.kind, change.path)
        except OSError as error:
            stuck.append(f"/{change.path} cannot be put back: {_text_of(error)}")
            continue
        journal.mark(number, "undone", problem)
    if stuck:
        return Outcome(action.name, "stuck", changes, "; ".join((problem, *stuck)))
    return Outcome(action.name, "undone", changes if made else (), problem)


@dataclass(frozen=True, slots=True)
class _FileWriter:
    """What an action is for a setting, this is for a file of ours."""

    name: str

    def apply(self, places: Places, change: Change) -> None:
        places.write(change.kind, change.path, change.after)

    def verify(self, places: Places, change: Change) -> str:
        is_there = places.read(change.kind, change.path) == change.after
        return "" if is_there else f"/{change.path} does not hold what was written"

    def rollback(self, places: Places, change: Change) -> None:
        put_back(places, change)


def roll_back(
    places: Places,
    journal: Journal,
    *,
    force: bool = False,
    tell: Callable[[Restored], None] = lambda _: None,
) -> list[Restored]:
    """Takes back every change that the journal holds, last first; goes on after a failure.

    `force`: also where somebody else has changed the place since. Raises JournalError.
    """
    found: list[Restored] = []
    for entry in reversed(journal.pending()):
        try:
            restored = _restore(entry, places, force=force)
        except OSError as error:
            restored = Restored(entry.change, "failed", _text_of(error))
        if restored.is_settled:
            journal.mark(entry.id, "undone", restored.state)
        found.append(restored)
        tell(restored)
    return found


def _restore(entry: Entry, places: Places, *, force: bool) -> Restored:
    """Raises OSError."""
    change = entry.change
    places.clean(change.kind, change.path)
    now = places.read(change.kind, change.path)
    if now == change.before:
        return Restored(change, "already")
    if now is None and change.kind not in ("file", "directory"):
        return Restored(change, "gone", "there is no such setting any more")
    if change.kind == "directory":
        if any((places.root / change.path).iterdir()):
            return Restored(change, "kept", "it is not empty")
    elif now != change.after and not force and not _is_partly_done(entry, now):
        return Restored(change, "kept", f"somebody has changed it since, to {now!r}")
    put_back(places, change)
    return Restored(change, "restored")


def _is_partly_done(entry: Entry, now: str | None) -> bool:
    """A pool of huge pages grows page by page, and a crash may have come before its end."""
    change = entry.change
    if change.kind != "count" or entry.state != "begun" or None in (now, change.before):
        return False
    try:
        before, reached, after = int(change.before or ""), int(now or ""), int(change.after or "")
    except ValueError:
        return False
    return min(before, after) <= reached <= max(before, after)


def _text_of(error: OSError) -> str:
    """What went wrong; also of errors that carry a text of our own."""
    return error.strerror or str(error)
