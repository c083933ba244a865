"""Places: where a setting of the machine is read and written, and nothing about what it means.

    kind        path below the root                what stands there
    value       proc/sys/…, sys/…                  one word
    count       …/nr_hugepages                     a number; the kernel may grant fewer than asked
    choice      sys/kernel/mm/…                    all words, the chosen one in [brackets]
    file        etc/…                              a file of ours, replaced as a whole
    directory   etc/…                              "" where it is there

Everywhere None is "not there". Only paths that `is_known_place` knows are ever written: a journal
that was damaged, or made up, leads nowhere else. `root` lets tests lay out a tree of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hearth.core.errors import HostError

Kind = Literal["value", "count", "choice", "file", "directory"]

SYSCTL_FILE = "etc/sysctl.d/60-hearth.conf"
LIMITS_FILE = "etc/security/limits.d/60-hearth.conf"
UNIT_FILE = "etc/systemd/system/hearth.service.d/60-hearth.conf"
TMPFILES_FILE = "etc/tmpfiles.d/60-hearth.conf"
FILES = (SYSCTL_FILE, LIMITS_FILE, UNIT_FILE, TMPFILES_FILE)

_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_NAME = r"(?!\.\.?/)[^/\s]+"
_KNOWN: dict[str, re.Pattern[str]] = {
    "value": re.compile(
        r"proc/sys/(net/core/somaxconn|fs/file-max|vm/swappiness)"
        rf"|sys/block/{_NAME}/queue/read_ahead_kb"
        r"|sys/class/bdi/\d+:\d+/read_ahead_kb"
        r"|sys/devices/system/cpu/cpufreq/policy\d+/(scaling_governor|energy_performance_preference)"
    ),
    "count": re.compile(
        r"proc/sys/vm/nr_hugepages"
        r"|sys/devices/system/node/node\d+/hugepages/hugepages-\d+kB/nr_hugepages"
    ),
    "choice": re.compile(r"sys/kernel/mm/transparent_hugepage/(enabled|defrag)"),
    "file": re.compile("|".join(map(re.escape, FILES))),
    "directory": re.compile(
        "|".join(re.escape(str(parent)) for name in FILES for parent in Path(name).parents[:-1])
    ),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One place that is to hold `after` instead of `before`; None: is not there.

    `action`: the name of the action that wants it. `path`: below the root, without a slash before.
    """

    action: str
    kind: Kind
    path: str
    before: str | None
    after: str | None


def is_known_place(kind: str, path: str) -> bool:
    """Whether hearth changes this place at all."""
    pattern = _KNOWN.get(kind)
    return pattern is not None and pattern.fullmatch(path) is not None


class Places:
    """Reads and writes places below a root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def read(self, kind: Kind, path: str) -> str | None:
        """What stands there. Raises OSError where it is there and cannot be read."""
        where = self.root / path
        try:
            if kind == "directory":
                return "" if stat.S_ISDIR(where.stat().st_mode) else None
            if kind == "file":
                return _read_plain(where)
            text = where.read_text(encoding="utf-8", errors="surrogateescape").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _chosen(text) if kind == "choice" else text

    def is_writable(self, path: str) -> bool:
        """Whether the file system lets this process write there, as far as can be told."""
        return os.access(self.root / path, os.W_OK)

    def write(self, kind: Kind, path: str, text: str | None) -> None:
        """Makes the place hold `text`. A file is on disk when this returns.

        Raises OSError, and HostError for a place that hearth does not change.
        """
        if not is_known_place(kind, path):
            raise HostError(f"/{path} is no place that hearth changes")
        where = self.root / path
        if kind == "directory":
            _write_directory(where, text)
        elif kind == "file":
            _write_file(where, text)
        elif text is not None:
            self.write_kernel(where, text)

    def write_kernel(self, where: Path, text: str) -> None:
        """Writes a file of the kernel, which is never created. Raises OSError."""
        target = os.open(where, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            # One call, and it may refuse: the kernel takes a value as a whole.
            os.write(target, f"{text}\n".encode("utf-8", "surrogateescape"))
        finally:
            os.close(target)

    def clean(self, kind: Kind, path: str) -> None:
        """Takes away what a crash in the middle of `write` has left beside a file."""
        if kind == "file" and is_known_place(kind, path):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _draft_of(self.root / path).unlink()


def _chosen(text: str) -> str:
    """`always [madvise] never` is madvise; a text without brackets is itself."""
    match = re.search(r"\[([^\]]*)\]", text)
    return match[1] if match else text


def _read_plain(where: Path) -> str:
    """Links and devices are never ours, and are neither followed nor replaced."""
    if not stat.S_ISREG(where.lstat().st_mode):
        raise OSError(0, "it is not a plain file")
    return where.read_bytes().decode("utf-8", "surrogateescape")


def _draft_of(where: Path) -> Path:
    """The name that a file has until it is complete; nothing reads it: no `.conf` at its end."""
    return where.with_name(f".{where.name}.hearth-draft")


def _write_file(where: Path, text: str | None) -> None:
    """Replaced or removed in one step: a crash leaves the old file or the new one."""
    if text is None:
        where.unlink(missing_ok=True)
        sync_directory(where.parent)
        return
    draft = _draft_of(where)
    draft.unlink(missing_ok=True)
    mode = stat.S_IMODE(where.lstat().st_mode) if where.exists() else _FILE_MODE
    target = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with os.fdopen(target, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fchmod(target, mode)
            os.fsync(target)
        draft.replace(where)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(where.parent)


def _write_directory(where: Path, text: str | None) -> None:
    """One that has something in it stays: it is not only ours any more."""
    if text is None:
        where.rmdir()
    else:
        where.mkdir()
        where.chmod(_DIRECTORY_MODE)  # whatever the umask is
    sync_directory(where.parent)


def sync_directory(where: Path) -> None:
    """Names that were added or removed there survive a loss of power from now on."""
    target = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(target)
    finally:
        os.close(target)
