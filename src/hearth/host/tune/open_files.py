"""The limit of open files: a setting of logins and services, which files alone can change.

Nobody's limit is lowered by them, and none is written that the kernel would refuse: pam_limits ends
a login whose limit it cannot set.
"""

from __future__ import annotations

import re
from pathlib import Path

from hearth.host.files import whole_number
from hearth.host.tune import places as at
from hearth.host.tune.actions import Check, FileLine, HostView
from hearth.host.tune.persist import is_written
from hearth.host.tune.places import Places

OPEN_FILES = 65536
_NR_OPEN = "proc/sys/fs/nr_open"  # the largest limit that the kernel takes
_LIMITS = "etc/security/limits.conf"
_LIMITS_DIR = "etc/security/limits.d"
# limits.conf(5): domain, type (`-` is both), item, value.
_HARD_LIMIT = re.compile(r"^\s*(?:\*|root)\s+(?:hard|-)\s+nofile\s+(\S+)", re.MULTILINE)
_NO_LIMIT = frozenset(("unlimited", "infinity", "-1"))


def find_open_files(view: HostView, _name: str) -> Check:
    """A process has its limit from whoever started it: there is nothing to change for now."""
    hard = view.hard_open_files
    now = f"{view.soft_open_files} (hard limit {hard})"
    if hard < 0 or hard >= OPEN_FILES:
        return Check("ok", now, now, notes=("hearth serve raises its own soft limit",))
    target = _target(view.places)
    if target <= hard:
        note = f"/{_NR_OPEN} takes no more than {target}"
        return Check("ok", now, now, notes=(note,))
    lines = [FileLine(at.UNIT_FILE, "LimitNOFILE", f"LimitNOFILE={target}")]
    for who in ("*", "root"):  # pam_limits: the star is not for root
        key = f"{who} hard nofile"
        lines.append(FileLine(at.LIMITS_FILE, key, f"{key} {target}"))
    if all(is_written(view.places, line) for line in lines):
        note = f"{target} stands in files of hearth: after the next login or start of the service"
        return Check("ok", now, now, lines=tuple(lines), notes=(note,))
    note = (
        "the limit of a login or a service comes from files: with --persist, log in again, or "
        "systemctl daemon-reload and start the service again; for now, in the shell that hearth "
        f"serve is called from: sudo prlimit --pid $$ --nofile=:{target}"
    )
    then = f"{target} (hard limit, after the next login or start of the service)"
    return Check("persist", now, then, lines=tuple(lines), notes=(note,))


def _target(places: Places) -> int:
    most = whole_number(_text(places, _NR_OPEN))
    wanted = max(OPEN_FILES, _first_process_limit(places), *_written_limits(places, most or 0))
    return wanted if most is None else min(wanted, most)


def _first_process_limit(places: Places) -> int:
    """The hard limit of process 1, from which sessions and services come; 0 where unknown."""
    match = re.search(
        r"^Max open files\s+\S+\s+(\d+)", _text(places, "proc/1/limits"), re.MULTILINE
    )
    return whole_number(match[1]) or 0 if match else 0


def _written_limits(places: Places, most: int) -> list[int]:
    """What limits.conf gives everybody; ours is read after it. `most` stands for no limit."""
    ours = Path(at.LIMITS_FILE).name
    names = sorted(p.name for p in (places.root / _LIMITS_DIR).glob("*.conf") if p.name != ours)
    paths = (_LIMITS, *(f"{_LIMITS_DIR}/{name}" for name in names))
    words = [word for path in paths for word in _HARD_LIMIT.findall(_text(places, path))]
    return [most if word in _NO_LIMIT else whole_number(word) or 0 for word in words]


def _text(places: Places, path: str) -> str:
    try:
        return places.read("value", path) or ""
    except OSError:
        return ""
