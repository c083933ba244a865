"""Files that keep settings over a boot: what would stand in them, and what else stands in the way.

Each file is hearth's own, begins with `MARKER`, and is written as a whole. A file of that name that
does not begin so is somebody else's: it is neither changed nor replaced. Lines of earlier runs stay
where no line of this run has their key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hearth.host.tune import places as at
from hearth.host.tune.actions import FileLine
from hearth.host.tune.places import FILES, Change, Places

MARKER = "# Written by hearth tune; hearth tune --rollback takes it away."
ACTION = "persist"
_HEADS = {at.UNIT_FILE: "[Service]"}
# Later directories give way to earlier ones of the same file name; sysctl.d(5).
_SYSCTL_DIRS = (
    *("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d"),
    "lib/sysctl.d",
)
_SYSCTL_CONF = "etc/sysctl.conf"  # `sysctl --system` reads it after all others; sysctl(8)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file as it would be. `problem`: why it is not written; then there are no changes.

    `changes`: missing directories first, then the file; empty where it holds everything already.
    """

    path: str
    text: str
    changes: tuple[Change, ...]
    problem: str = ""


def sysctl_line(key: str, value: str) -> FileLine:
    """`vm.swappiness = 10`."""
    return FileLine(at.SYSCTL_FILE, key, f"{key} = {value}")


def sysfs_line(path: str, value: str) -> FileLine:
    """For systemd-tmpfiles: written at the boot, where the file is there (tmpfiles.d(5), `w`)."""
    return FileLine(at.TMPFILES_FILE, f"w /{path}", f"w /{path} - - - - {value}")


def plan_files(places: Places, lines: Iterable[FileLine]) -> list[FilePlan]:
    """What `--persist` writes for these lines; reads only."""
    wanted = list(lines)
    made: set[str] = set()
    plans: list[FilePlan] = []
    for path in FILES:
        mine = [line for line in wanted if line.file == path]
        if mine:
            plan = _plan_file(places, path, mine, made)
            made.update(c.path for c in plan.changes if c.kind == "directory")
            plans.append(plan)
    return plans


def is_written(places: Places, line: FileLine) -> bool:
    """Whether a file of ours holds this line already."""
    try:
        text = places.read("file", line.file) or ""
    except OSError:
        return False
    return text.startswith(MARKER) and line.text in text.splitlines()


def _plan_file(places: Places, path: str, lines: Sequence[FileLine], made: set[str]) -> FilePlan:
    """`made`: directories that are made for another file already."""
    try:
        before = places.read("file", path)
    except OSError as error:
        return FilePlan(path, "", (), f"/{path}: {error.strerror}: it is left alone")
    if before is not None and not before.startswith(MARKER):
        problem = (
            f"/{path} is there and was not written by hearth: it is left alone; move it away, or "
            "put these lines where they belong yourself"
        )
        return FilePlan(path, "", (), problem)
    text = _compose(path, before or "", lines)
    if text == before:
        return FilePlan(path, text, ())
    change = Change(ACTION, "file", path, before, text)
    return FilePlan(path, text, (*_missing_directories(places, path, made), change))


def _compose(path: str, before: str, lines: Sequence[FileLine]) -> str:
    head = [MARKER, *([_HEADS[path]] if path in _HEADS else [])]
    kept = [
        text
        for text in before.splitlines()
        if text.strip() and text not in head and not any(_has_key(text, line) for line in lines)
    ]
    return "\n".join([*head, *kept, *(line.text for line in lines)]) + "\n"


def _has_key(text: str, line: FileLine) -> bool:
    rest = text.removeprefix(line.key)
    return rest != text and rest[:1] in {" ", "="}


def _missing_directories(places: Places, path: str, made: set[str]) -> list[Change]:
    parents = [str(parent) for parent in reversed(Path(path).parents[:-1])]
    return [
        Change(ACTION, "directory", parent, None, "")
        for parent in parents
        if parent not in made and not (places.root / parent).is_dir()
    ]


def notes_on(places: Places, lines: Iterable[FileLine]) -> list[str]:
    """What will keep these lines from having their effect at the next boot."""
    wanted = list(lines)
    notes: list[str] = []
    if wanted and not (places.root / "run/systemd/system").is_dir():
        notes.append(
            "systemd does not run this machine: whether anything reads these files at the boot is "
            "for its own start-up to say (sysctl --system reads the first)"
        )
    for line in wanted:
        if line.file == at.SYSCTL_FILE:
            notes += [
                f"/{name} sets {line.key}, too, and is read later: it wins at the boot"
                for name in _later_files(places, line.key)
            ]
    return notes


def _later_files(places: Places, key: str) -> list[str]:
    """Files that are read after ours and set the same key."""
    seen: dict[str, str] = {}
    for directory in _SYSCTL_DIRS:
        for path in sorted((places.root / directory).glob("*.conf")):
            seen.setdefault(path.name, f"{directory}/{path.name}")
    later = sorted(name for name in seen if name > Path(at.SYSCTL_FILE).name)
    paths = [*(seen[name] for name in later), _SYSCTL_CONF]
    # Links to one file are one; a circle of links is nothing that could be read.
    files = {os.path.realpath(places.root / path): path for path in reversed(paths)}
    return [path for file, path in reversed(files.items()) if _sets(Path(file), key)]


def _sets(path: Path, key: str) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    names = (line.partition("=")[0].strip().removeprefix("-") for line in text.splitlines())
    return any(name.replace("/", ".") == key for name in names)
