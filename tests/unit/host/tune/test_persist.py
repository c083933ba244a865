"""Files that keep settings over a boot, and those of others."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.unit.host.test_memory import write
from tests.unit.host.tune.trees import lay_out, snapshot

from hearth.host.tune.actions import FileLine
from hearth.host.tune.persist import MARKER, notes_on, plan_files, sysctl_line
from hearth.host.tune.places import SYSCTL_FILE, UNIT_FILE, Places

SWAPPINESS = sysctl_line("vm.swappiness", "10")
SOMAXCONN = sysctl_line("net.core.somaxconn", "65535")


def test_a_file_begins_with_who_wrote_it(tmp_path: Path) -> None:
    places = lay_out(tmp_path)
    (file,) = plan_files(places, [SWAPPINESS])
    assert file.text == f"{MARKER}\nvm.swappiness = 10\n"
    (unit,) = plan_files(places, [FileLine(UNIT_FILE, "LimitNOFILE", "LimitNOFILE=65536")])
    assert unit.text == f"{MARKER}\n[Service]\nLimitNOFILE=65536\n"
    assert [change.path for change in unit.changes] == [
        "etc/systemd",
        "etc/systemd/system",
        "etc/systemd/system/hearth.service.d",
        UNIT_FILE,
    ]


def test_lines_of_earlier_runs_stay_unless_this_one_says_otherwise(tmp_path: Path) -> None:
    former = f"{MARKER}\nvm.swappiness = 60\nvm.swappiness_other = 1\nnet.core.somaxconn=1\n"
    places = lay_out(tmp_path, {SYSCTL_FILE: former})
    (file,) = plan_files(places, [SWAPPINESS])
    assert file.text == (
        f"{MARKER}\nvm.swappiness_other = 1\nnet.core.somaxconn=1\nvm.swappiness = 10\n"
    )
    (both,) = plan_files(places, [SWAPPINESS, SOMAXCONN])
    assert "somaxconn=1\n" not in both.text


def test_a_file_that_holds_everything_is_not_written_again(tmp_path: Path) -> None:
    places = lay_out(tmp_path, {SYSCTL_FILE: f"{MARKER}\nvm.swappiness = 10\n"})
    (file,) = plan_files(places, [SWAPPINESS])
    assert file.changes == ()


def test_a_file_of_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    places = lay_out(tmp_path, {SYSCTL_FILE: "vm.swappiness = 60\n"})
    (file,) = plan_files(places, [SWAPPINESS])
    assert file.changes == ()
    assert "was not written by hearth" in file.problem


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    places = lay_out(tmp_path)
    target = tmp_path / "elsewhere"
    target.write_text(f"{MARKER}\n")
    (tmp_path / SYSCTL_FILE).symlink_to(target)
    (file,) = plan_files(places, [SWAPPINESS])
    assert (file.changes, "not a plain file" in file.problem) == ((), True)


@pytest.mark.parametrize(
    ("name", "is_later"),
    [
        ("etc/sysctl.d/99-site.conf", True),
        ("usr/lib/sysctl.d/70-x.conf", True),
        ("etc/sysctl.d/10-site.conf", False),
        ("etc/sysctl.d/99-site.txt", False),
        ("lib/sysctl.d/70-x.conf", True),
        ("etc/sysctl.conf", True),
    ],
)
def test_a_file_that_is_read_later_and_wins_is_named(
    tmp_path: Path, name: str, is_later: bool
) -> None:
    places = Places(write(tmp_path, {name: "# vm.swappiness = 5\n -vm/swappiness = 60\n"}))
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    notes = notes_on(places, [SWAPPINESS])
    assert [f"/{name} sets vm.swappiness" in note for note in notes] == [True] * is_later


def test_a_file_that_is_a_link_to_another_is_named_once(tmp_path: Path) -> None:
    places = Places(write(tmp_path, {"etc/sysctl.conf": "vm.swappiness = 5\n"}))
    (tmp_path / "etc/sysctl.d").mkdir()
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (note,) = notes_on(places, [SWAPPINESS])
    assert note.startswith("/etc/sysctl.d/99-sysctl.conf sets vm.swappiness")


def test_a_machine_without_systemd_is_told_who_reads_the_files(tmp_path: Path) -> None:
    assert "systemd does not run" in notes_on(Places(tmp_path), [SWAPPINESS])[0]
    assert notes_on(Places(tmp_path), []) == []


def test_a_full_disk_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = lay_out(tmp_path, {SYSCTL_FILE: f"{MARKER}\n"})
    before = snapshot(tmp_path)

    def fsync(target: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        places.write("file", SYSCTL_FILE, "text")
    assert snapshot(tmp_path) == before


def test_a_new_directory_is_for_everybody_to_read(tmp_path: Path) -> None:
    places = Places(write(tmp_path, {"etc/x": ""}))
    former = os.umask(0o077)
    try:
        places.write("directory", "etc/tmpfiles.d", "")
    finally:
        os.umask(former)
    assert (tmp_path / "etc/tmpfiles.d").stat().st_mode & 0o777 == 0o755


def test_a_replaced_file_keeps_its_mode_and_a_new_one_is_for_everybody_to_read(
    tmp_path: Path,
) -> None:
    places = lay_out(tmp_path)
    path = tmp_path / SYSCTL_FILE
    former = os.umask(0o077)
    try:
        places.write("file", SYSCTL_FILE, "a")
        assert path.stat().st_mode & 0o777 == 0o644
        path.chmod(0o640)
        places.write("file", SYSCTL_FILE, "b")
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(former)
