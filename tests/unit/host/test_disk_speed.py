"""Reading speeds of a disk: what is read, and that nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hearth.host import disk_speed
from hearth.host.disk_speed import CHUNK_BYTES, measure_disk

SMALL = 2 * CHUNK_BYTES


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "FILE_BYTES", SMALL)
    monkeypatch.setattr(disk_speed, "RANDOM_READS", 20)


def test_the_largest_file_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "weights").write_bytes(os.urandom(SMALL + 100))
    before = (tmp_path / "weights").stat()
    speed = measure_disk(tmp_path)
    assert speed.source == "reading weights"
    assert speed.read_bytes_s > 0
    assert 0 < speed.random_read_s <= speed.random_read_p99_s
    assert (tmp_path / "weights").stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_is_made_where_there_is_none_and_removed(tmp_path: Path) -> None:
    assert "made for it" in measure_disk(tmp_path).source
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_is_made_has_no_name_that_a_kill_would_leave_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []
    read = disk_speed._read_through

    def look(opened: disk_speed._Opened, size: int) -> float:
        seen.append(list(tmp_path.iterdir()))
        return read(opened, size)

    monkeypatch.setattr(disk_speed, "_read_through", look)
    assert measure_disk(tmp_path).read_bytes_s > 0
    assert seen == [[]]


def test_a_directory_that_will_be_made_lies_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    speed = measure_disk(tmp_path / "a" / "b")
    assert speed.read_bytes_s > 0
    assert speed.path == str(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *rest)

    (tmp_path / "weights").write_bytes(os.urandom(SMALL))
    monkeypatch.setattr("os.open", refuse)
    speed = measure_disk(tmp_path)
    assert not speed.is_direct
    assert speed.read_bytes_s > 0


def test_too_little_room_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_speed, "FILE_BYTES", 1 << 60)
    with pytest.raises(OSError, match="too little room"):
        measure_disk(tmp_path)
