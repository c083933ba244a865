"""Every action makes its round on the machine that runs the tests, where that is allowed.

Values are moved to a near one and back, whatever they are. The former ones are put back in any
case, also where the code under test does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hearth.host.tune.actions import view_of
from hearth.host.tune.catalog import BY_NAME, read_ahead_path
from hearth.host.tune.journal import open_journal
from hearth.host.tune.places import Change, Kind, Places
from hearth.host.tune.runner import apply_changes, roll_back

_THP = "sys/kernel/mm/transparent_hugepage"
ROUNDS: dict[str, tuple[Kind, str]] = {
    "somaxconn": ("value", "proc/sys/net/core/somaxconn"),
    "swappiness": ("value", "proc/sys/vm/swappiness"),
    "file-max": ("value", "proc/sys/fs/file-max"),
    "hugepages": ("count", "proc/sys/vm/nr_hugepages"),
    "readahead": ("value", ""),
    "thp": ("choice", f"{_THP}/enabled"),
    "thp-defrag": ("choice", f"{_THP}/defrag"),
    "governor": ("value", "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"),
}
PLACES = Places()


def other(name: str, now: str) -> str:
    """A value that harms nobody for a moment."""
    if name == "governor":
        return "performance" if now != "performance" else "powersave"
    if name.startswith("thp"):
        return "madvise" if now != "madvise" else "always"
    if name == "readahead":
        return str(int(now) * 2 or 128)
    return str(int(now) ^ 1 if name == "swappiness" else int(now) + 1)


@pytest.fixture(params=sorted(ROUNDS))
def change(request: pytest.FixtureRequest) -> Iterator[Change]:
    name = str(request.param)
    kind, path = ROUNDS[name]
    path = path or read_ahead_path(view_of(PLACES, Path.cwd())) or "sys/no/readahead"
    now = PLACES.read(kind, path)
    if now is None:
        pytest.skip(f"there is no /{path} here")
    if os.geteuid() != 0 or not PLACES.is_writable(path):
        pytest.skip(f"/{path} may not be written here")
    yield Change(name, kind, path, now, other(name, now))
    if PLACES.read(kind, path) != now:
        PLACES.write(kind, path, now)


def test_a_setting_of_this_machine_is_changed_read_back_and_put_back(
    change: Change, tmp_path: Path
) -> None:
    action = BY_NAME[change.action]
    with open_journal(tmp_path / "journal") as journal:
        outcome = apply_changes(action, [change], PLACES, journal)
        assert outcome.state == "done", outcome.reason
        assert PLACES.read(change.kind, change.path) == change.after
        (found,) = roll_back(PLACES, journal)
    assert found.state == "restored", found.reason
    assert PLACES.read(change.kind, change.path) == change.before


def test_all_settings_of_this_machine_can_be_looked_at() -> None:
    view = view_of(PLACES, Path.home() / ".cache")
    for action in BY_NAME.values():
        assert action.check(view).now
