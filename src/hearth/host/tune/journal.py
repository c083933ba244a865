"""Journal: what hearth changed on this machine, written before each change.

JSON lines, one for a change and one for each mark on it, each on disk before `begin` or `mark`
returns:

    {"v":1,"id":3,"at":"…","action":"swappiness","kind":"value","path":"proc/sys/vm/swappiness",
     "before":"60","after":"10"}
    {"v":1,"id":3,"at":"…","state":"done"}

    begun ──▶ done ──▶ undone        begun: the place holds `before` or `after`, nobody knows which
      └─────────────────▲

A line that a crash cut off is the last one; what it would have announced has not happened, so it is
dropped. Any other line that cannot be read is an error: rolling back around it would be a guess.
Lines are never changed: the journal is also the history. One process at a time writes, held by a
lock on a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hearth.core.errors import JournalError
from hearth.host.tune.places import Change, is_known_place, sync_directory

VERSION = 1
State = Literal["begun", "done", "undone"]
_STATES = ("done", "undone")


@dataclass(frozen=True, slots=True)
class Entry:
    """A change that was announced, and how far it came."""

    id: int
    change: Change
    state: State


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_entries(path: Path, *, skip_damaged: bool = False) -> list[Entry]:
    """All entries in their order; [] where there is no journal.

    `skip_damaged` leaves out lines that cannot be read. Raises JournalError.
    """
    return _parse(path, _complete_lines(_read(path)), skip_damaged=skip_damaged)


class Journal:
    """The journal of one process that holds the lock; made by `open_journal`."""

    def __init__(self, path: Path, entries: list[Entry], clock: Callable[[], str]) -> None:
        self.path = path
        self._clock = clock
        self._entries = {entry.id: entry for entry in entries}
        self._next_id = max(self._entries, default=0) + 1

    def pending(self) -> list[Entry]:
        """Changes that have not been undone, in the order in which they were begun."""
        return [entry for entry in self._entries.values() if entry.state != "undone"]

    def begin(self, change: Change) -> int:
        """Announces a change and returns its id. Raises JournalError: then nothing may be done."""
        number = self._next_id
        line = {
            "action": change.action,
            "kind": change.kind,
            "path": change.path,
            "before": change.before,
            "after": change.after,
        }
        self.append({"v": VERSION, "id": number, "at": self._clock(), **line})
        self._entries[number] = Entry(number, change, "begun")
        self._next_id += 1
        return number

    def mark(self, number: int, state: Literal["done", "undone"], note: str = "") -> None:
        """Says how far a change came; `note` is for people. Raises JournalError."""
        extra = {"note": note} if note else {}
        self.append({"v": VERSION, "id": number, "at": self._clock(), "state": state, **extra})
        self._entries[number] = Entry(number, self._entries[number].change, state)

    def append(self, line: dict[str, Any]) -> None:
        """One line, on disk when this returns; a line that did not fit is taken back."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            is_new = not self.path.exists()
            target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.lseek(target, 0, os.SEEK_END)
                _write_all(target, data, size)
                os.fsync(target)
            finally:
                os.close(target)
            if is_new:
                sync_directory(self.path.parent)
        except OSError as error:
            raise _cannot_write(self.path, error) from error


@contextlib.contextmanager
def open_journal(
    path: Path,
    *,
    skip_damaged: bool = False,
    clock: Callable[[], str] = _now,
    kind: type[Journal] = Journal,
) -> Iterator[Journal]:
    """Takes the lock and reads what is there. Raises JournalError."""
    _read(path)  # before a lock is left beside what is no journal
    with _locked(path):
        data = _read(path)
        complete = _complete_lines(data)
        entries = _parse(path, complete, skip_damaged=skip_damaged)
        num_bytes = sum(len(line) + 1 for line in complete)
        if num_bytes != len(data):
            _truncate(path, num_bytes)
        yield kind(path, entries, clock)


def _write_all(target: int, data: bytes, size: int) -> None:
    """`size`: what the file is cut back to when the disk is full in the middle of the line."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(target, size)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    try:
        _make_directories(path.parent)
        target = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"another hearth tune is at work (it holds {lock})", hint="wait for its end"
            ) from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        yield
    finally:
        os.close(target)  # and with it the lock; the file stays, so that all lock the same one


def _make_directories(where: Path) -> None:
    """With their names on disk: a journal in a directory that a crash takes away is none."""
    missing = [p for p in (where, *where.parents) if not p.exists()]
    where.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def _truncate(path: Path, num_bytes: int) -> None:
    try:
        target = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(target, num_bytes)
            os.fsync(target)
        finally:
            os.close(target)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"the journal {path} cannot be written: {error.strerror}",
        hint="nothing is changed without it: free space, or name another one with --journal",
    )


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # some devices never end
            raise JournalError(f"the journal {path} is not a plain file", hint="name a file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error


def _complete_lines(data: bytes) -> list[bytes]:
    """Lines without what a crash cut off: a last one without its end, or that is no JSON."""
    lines = data.split(b"\n")[:-1]
    if lines and not _is_json(lines[-1]):
        lines.pop()
    return lines


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parse(path: Path, lines: list[bytes], *, skip_damaged: bool) -> list[Entry]:
    entries: dict[int, Entry] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = _entry(json.loads(line), entries)
        except (ValueError, TypeError, KeyError) as error:
            if skip_damaged:
                continue
            raise JournalError(
                f"line {number} of the journal {path} cannot be read: {error}",
                hint="mend or remove the line; hearth tune --rollback --force leaves it out",
            ) from error
        entries[entry.id] = entry
    return list(entries.values())


def _entry(found: Any, entries: dict[int, Entry]) -> Entry:
    """The entry after this line. Raises what JSON of another form raises."""
    if not isinstance(found, dict):
        raise TypeError("it is not an object")
    if found["v"] != VERSION:
        raise ValueError(f"it has version {found['v']!r}, this hearth knows {VERSION}")
    number = found["id"]
    if "state" in found:
        if found["state"] not in _STATES or number not in entries:
            raise ValueError("it marks nothing that was begun")
        return Entry(number, entries[number].change, found["state"])
    texts = (found["before"], found["after"])
    if not isinstance(number, int) or number in entries:
        raise ValueError(f"{number!r} is not a new id")
    if not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError("before and after are not texts")
    if not is_known_place(found["kind"], found["path"]):
        raise ValueError(f"{found['path']!r} is no place that hearth changes")
    change = Change(str(found["action"]), found["kind"], found["path"], *texts)
    return Entry(number, change, "begun")
