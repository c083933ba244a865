"""What was measured is shown, and a slow disk is told from a fast one."""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.test_speed import SPEEDS

from hearth.host.bandwidth import MemoryRead
from hearth.host.checks.check import Check, Examined, Level
from hearth.host.checks.measured import check_measured
from hearth.host.disk_speed import DiskSpeed
from hearth.host.facts.report import read_host
from hearth.host.gpu_copy import GpuCopies, GpuCopy
from hearth.host.profile import new_profile
from hearth.host.speed import Samples


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


def test_memory_and_copies_are_shown_with_their_range_where_it_is_wide(tmp_path: Path) -> None:
    memory = (
        MemoryRead(1, None, None, Samples(4.0e10, 4.1e10, 4.2e10, 5)),
        MemoryRead(2, None, None, Samples(4.5e10, 7.2e10, 8.3e10, 5)),
        MemoryRead(2, 0, 1, Samples(3e10, 3e10, 3e10, 5)),
    )
    copies = Samples(5.0e10, 5.1e10, 5.2e10, 8)
    cards = (GpuCopy(0, "A", copies, copies), GpuCopy(1, "B", why="not measured: out of memory"))
    profile = new_profile("a", None, (), memory=memory, gpus=GpuCopies(cards))
    found = {
        check.name: check
        for check in check_measured(Examined(read_host(tmp_path, tmp_path), None, profile))
    }
    assert found["memory speed"].measured == "1 thread 41.0 GB/s; 2 threads 72.0 GB/s (45.0-83.0)"
    assert found["memory speed by node"].measured == "node 0 of node 1's 30.0 GB/s"
    assert found["GPU copies"].measured == (
        "A: to it 51.0 GB/s, from it 51.0 GB/s; B: not measured: out of memory"
    )
    assert found["GPU copies"].level is Level.UNKNOWN


def test_why_no_card_was_copied_to_is_said(tmp_path: Path) -> None:
    gpus = GpuCopies((), "not measured: libcuda.so.1: cannot open shared object file")
    examined = Examined(read_host(tmp_path, tmp_path), None, new_profile("a", None, (), gpus=gpus))
    (check,) = check_measured(examined)
    assert (check.level, check.measured) == (Level.UNKNOWN, gpus.why)
