"""What was measured is shown, and a slow disk is told from a fast one."""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.test_speed import SPEEDS

from hearth.host.checks.check import Check, Examined, Level
from hearth.host.checks.measured import check_measured
from hearth.host.disk_speed import DiskSpeed
from hearth.host.facts.report import read_host
from hearth.host.profile import new_profile


def checks(tmp_path: Path, *disks: DiskSpeed) -> list[Check]:
    facts = read_host(tmp_path, tmp_path)
    return list(check_measured(Examined(facts, None, new_profile("a", SPEEDS, disks))))


def disk(path: Path, read_bytes_s: float = 6e8, p99_s: float = 1e-3) -> DiskSpeed:
    return DiskSpeed(str(path), read_bytes_s, 1e-4, p99_s, True, "reading weights")


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path) -> None:
    assert check_measured(Examined(read_host(tmp_path, tmp_path))) == ()


def test_the_kernels_speeds_are_those_of_one_row(tmp_path: Path) -> None:
    (kernels,) = checks(tmp_path)
    assert kernels.level is Level.OK
    assert kernels.measured == "weights are read at int4 10.0 GB/s, int8 10.0 GB/s (made up)"


def test_a_disk_that_answers_late_or_reads_slowly_is_a_warning_with_a_way_out(
    tmp_path: Path,
) -> None:
    for slow in (disk(tmp_path, p99_s=0.02), disk(tmp_path, read_bytes_s=9e7)):
        _, storage = checks(tmp_path, slow)
        assert storage.level is Level.WARN
        assert "--stage" in storage.fixes[0].command
    _, storage = checks(tmp_path, disk(tmp_path))
    assert (storage.level, storage.fixes) == (Level.OK, ())


def test_another_directorys_disk_is_not_judged(tmp_path: Path) -> None:
    assert len(checks(tmp_path, disk(tmp_path / "elsewhere", p99_s=1.0))) == 1
