"""What was measured is kept whole, for the machine and the kernels that it belongs to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.host.test_memory import write
from tests.unit.host.test_speed import SPEEDS

from hearth.host.bandwidth import MemoryRead
from hearth.host.disk_speed import DiskSpeed
from hearth.host.gpu_copy import GpuCopies, GpuCopy
from hearth.host.placement import Placement
from hearth.host.profile import (
    age_of,
    load_profile,
    machine_name,
    new_profile,
    profile_path,
    save_profile,
)
from hearth.host.speed import Samples, SpeedPoint

DISK = DiskSpeed("/models", 6e8, 1e-4, 5e-4, True, "reading a file")


def test_what_was_saved_is_loaded_for_the_same_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    profile = new_profile("a", SPEEDS, (DISK,), ("a note",))
    save_profile(path, profile)
    assert load_profile(path, "a") == profile
    assert load_profile(path, "b") is None
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b'{"version": 1, "machine": "\xff"}', b'{"version": 99, "machine": "a"}'],
)
def test_a_file_that_is_no_profile_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    assert load_profile(path, "a") is None
    assert load_profile(tmp_path / "none.json", "a") is None


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, new_profile("a", SPEEDS, ()))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_profile(path, new_profile("a", None, ()))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_a_machine_is_its_name_its_processor_its_kernels_and_its_threads(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t: fpu\n",
        "etc/machine-id": "0123456789abcdef\n",
    }
    root = write(tmp_path, files)
    bound, free = Placement(2, "", (0, 1), ""), Placement(2, "", (), "")
    listed = replace(bound, is_asked=True)
    start = "01234567: AMD EPYC 9B14; avx2; 2 threads on "
    assert machine_name("avx2", listed, root) == f"{start}CPUs 0-1"
    assert machine_name("avx2", bound, root) == f"{start}cores of their own"
    fast = replace(bound, core_kind="performance")
    assert machine_name("avx2", fast, root) == f"{start}performance cores of their own"
    assert machine_name("avx2", free, root) == f"{start}any CPU"
    assert machine_name("avx2", free, tmp_path / "none").startswith("unnamed: unknown processor; ")


def test_speeds_that_nothing_can_be_reckoned_with_are_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    (int4, int8) = SPEEDS.precisions
    for speeds in (
        replace(SPEEDS, kv_bytes_s=0.0),
        replace(SPEEDS, step_s=float("inf")),
        replace(SPEEDS, precisions=(replace(int4, points=()), int8)),
        replace(SPEEDS, precisions=(replace(int4, points=int4.points[::-1]),)),
        replace(SPEEDS, precisions=(replace(int4, points=(SpeedPoint(1, -1.0),)),)),
    ):
        save_profile(path, new_profile("a", speeds, ()))
        assert load_profile(path, "a") is None


def test_without_a_home_directory_nothing_is_written() -> None:
    with pytest.raises(OSError, match="no home directory"):
        save_profile(Path("~/.cache/hearth/profile.json"), new_profile("a", None, ()))


def test_the_cache_directory_of_the_user_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert profile_path() == tmp_path / "hearth" / "profile.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert profile_path().parts[-3:] == (".cache", "hearth", "profile.json")


def test_memory_and_copies_are_kept_and_damaged_ones_are_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    reads = (MemoryRead(2, None, None, Samples(4e10, 5e10, 6e10, 5)),)
    gpus = GpuCopies((GpuCopy(0, "a card", Samples(1.0, 2.0, 3.0, 8), Samples(1.0, 2.0, 3.0, 8)),))
    profile = new_profile("a", SPEEDS, (), memory=reads, gpus=gpus)
    save_profile(path, profile)
    assert load_profile(path, "a") == profile
    swapped = Samples(6e10, 5e10, 4e10, 5)
    (int4, int8) = SPEEDS.precisions
    for damaged in (
        replace(profile, memory=(replace(reads[0], bytes_s=swapped),)),
        replace(profile, gpus=GpuCopies((replace(gpus.cards[0], to_gpu_bytes_s=swapped),))),
        replace(profile, disks=(replace(DISK, read_bytes_s=0.0),)),
        replace(
            profile, speeds=replace(SPEEDS, precisions=(replace(int4, first_row_s=swapped), int8))
        ),
    ):
        save_profile(path, damaged)
        assert load_profile(path, "a") is None


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (86_400, "1 day ago"),
        (1e8, "1,157 days ago"),
    ],
)
def test_the_age_of_a_profile_is_said(seconds: float, age: str) -> None:
    profile = new_profile("a", None, ())
    assert age_of(profile, profile.measured_at + seconds) == age
