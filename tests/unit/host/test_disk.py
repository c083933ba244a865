"""What is told of the file system under a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hearth.host.disk import DiskFacts, read_disk


def write_mounts(root: Path, *mounts: tuple[str, str]) -> None:
    (root / "proc/self").mkdir(parents=True)
    lines = [f"1 0 0:1 / {point} rw shared:1 - {kind} source rw" for point, kind in mounts]
    (root / "proc/self/mountinfo").write_text("\n".join([*lines, "broken line"]) + "\n")


def test_the_mount_nearest_to_the_directory_counts(tmp_path: Path) -> None:
    below = tmp_path / "with space"
    below.mkdir()
    escaped = str(below).replace(" ", r"\040")
    write_mounts(tmp_path, ("/", "ext4"), (escaped, "ext4"), (escaped, "nfs4"))
    assert read_disk(below, tmp_path).file_system == "nfs4"
    assert read_disk(tmp_path, tmp_path).file_system == "ext4"


def test_a_directory_that_does_not_exist_yet_is_where_it_will_be(tmp_path: Path) -> None:
    found = read_disk(tmp_path / "a" / "b", tmp_path)
    assert found.file_system == ""
    status = os.statvfs(tmp_path)
    assert found.free_bytes == pytest.approx(status.f_bavail * status.f_frsize, rel=0.1)


def test_this_machine_has_a_file_system() -> None:
    assert read_disk(Path("/proc")).file_system == "proc"


@pytest.mark.parametrize(
    ("kind", "is_remote", "is_in_memory"),
    [
        ("ext4", False, False),
        ("overlay", False, False),
        ("nfs4", True, False),
        ("fuse.sshfs", True, False),
        ("tmpfs", False, True),
    ],
)
def test_what_a_file_system_means(kind: str, is_remote: bool, is_in_memory: bool) -> None:
    facts = DiskFacts(kind, 0)
    assert (facts.is_remote, facts.is_in_memory) == (is_remote, is_in_memory)
