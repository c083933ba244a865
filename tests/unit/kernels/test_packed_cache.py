"""The cache of packed weights: whole or absent, bounded, shared by several processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hearth.kernels.packed_cache import (
    COMPLETE,
    NOTE,
    UNFINISHED,
    CacheBusyError,
    CacheError,
    Found,
    PackedCache,
)
from hearth.kernels.packed_file import PAGE_BYTES, PackedHeader, PackedTensor, encode_header

MANY = 1 << 30
SIZE = 5 * PAGE_BYTES


def wanted(key: str = "a" * 32, num_bytes: int = SIZE) -> PackedHeader:
    """Three tensors, as a quantized weight has them."""
    tensors = (
        PackedTensor("w", "panel64", "int4", (100, 64), 0, 3200),
        PackedTensor("w", "scales", "float16", (100, 2), PAGE_BYTES, 400),
        PackedTensor("w", "zeros", "int4", (100, 2), 2 * PAGE_BYTES, 100),
    )
    return PackedHeader(key, num_bytes, tensors)


def put(cache: PackedCache, header: PackedHeader | None = None, fill: int = 7) -> Path:
    draft = cache.begin(header or wanted())
    draft.memory[:] = bytes([fill]) * len(draft.memory)
    return draft.commit()


def found(cache: PackedCache, header: PackedHeader | None = None, *, verify: bool = False) -> Found:
    result = cache.find(header or wanted(), verify=verify)
    assert result is not None
    return result


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_committed_is_found_and_cannot_be_written(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "new" / "dir", MANY)
    assert cache.find(wanted()) is None
    path = put(cache)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert found(cache, verify=True).memory[:] == b"\7" * SIZE
    with pytest.raises(TypeError, match="readonly"):
        found(cache).memory[0] = 1
    assert cache.find(wanted("b" * 32)) is None


def test_the_data_begin_at_a_page_and_the_header_describes_them(tmp_path: Path) -> None:
    path = put(PackedCache(tmp_path, MANY))
    head = len(encode_header(wanted()))
    assert head % PAGE_BYTES == 0
    assert path.stat().st_size == head + SIZE
    assert b'"layout":"scales"' in path.read_bytes()[:head]


def test_a_draft_that_is_not_committed_is_never_found(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    draft = cache.begin(wanted())
    assert cache.find(wanted()) is None
    draft.discard()
    assert names(tmp_path) == []
    draft.memory[:] = b"x" * SIZE  # still usable
    assert cache.find(wanted()) is None


def spoil(change: Callable[[bytearray, int], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content, len(encode_header(wanted())))
        path.write_bytes(content)

    return apply


def set_byte(offset: int) -> Callable[[bytearray, int], object]:
    def change(content: bytearray, head: int) -> None:
        content[offset] ^= 1

    return change


def cut(num_bytes: int) -> Callable[[bytearray, int], object]:
    def change(content: bytearray, head: int) -> None:
        del content[num_bytes:]

    return change


@pytest.mark.parametrize(
    "harm",
    [
        spoil(set_byte(0)),  # magic
        spoil(set_byte(8)),  # version
        spoil(set_byte(12)),  # length
        spoil(set_byte(20)),  # checksum
        spoil(set_byte(60)),  # header
        spoil(cut(0)),
        spoil(cut(10)),
        spoil(cut(PAGE_BYTES)),
        spoil(cut(-1)),
        spoil(lambda content, _: content.extend(b"\0")),
    ],
)
def test_a_damaged_file_is_told_removed_and_written_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    cache = PackedCache(tmp_path, MANY)
    harm(put(cache))
    with pytest.raises(CacheError, match="damaged"):
        cache.find(wanted())
    assert names(tmp_path) == []
    put(cache)
    assert found(cache).memory[:] == b"\7" * SIZE


def test_a_changed_tensor_is_seen_when_asked(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    path = put(cache)
    spoil(lambda content, head: content.__setitem__(head + 2 * PAGE_BYTES, 0))(path)
    assert cache.find(wanted()) is not None
    with pytest.raises(CacheError, match="1 tensors have changed: w"):
        cache.find(wanted(), verify=True)


def test_a_file_that_describes_other_tensors_is_not_served(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    path = put(cache)
    path.rename(tmp_path / f"{'b' * 32}{COMPLETE}")
    with pytest.raises(CacheError, match="other tensors"):
        cache.find(wanted("b" * 32))


def test_the_least_recently_used_go_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    size = put(PackedCache(tmp_path, MANY), wanted("0" * 32)).stat().st_size
    cache = PackedCache(tmp_path, 3 * size)
    for key in ("1", "2"):
        put(cache, wanted(key * 32))
    for age, key in enumerate("201"):  # "2" was used longest ago, then "0", then "1"
        used = time.time_ns() - (10 - age) * 10**9
        os.utime(tmp_path / f"{key * 32}{COMPLETE}", ns=(used, used))
    put(cache, wanted("3" * 32))
    assert [name[0] for name in names(tmp_path)] == ["0", "1", "3"]
    in_use = found(cache, wanted("1" * 32))  # and so the youngest, were it not in use either
    put(cache, wanted("4" * 32))
    assert [name[0] for name in names(tmp_path)] == ["1", "3", "4"]
    others = [found(cache, wanted(key * 32)) for key in "34"]
    with pytest.raises(CacheError, match="in use"):
        cache.begin(wanted("5" * 32))
    assert in_use.memory[0] == 7
    del in_use, others
    put(cache, wanted("5" * 32))
    assert [name[0] for name in names(tmp_path)] == ["3", "4", "5"]


def test_what_another_writer_has_left_is_no_part_of_the_new_file(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 32}{UNFINISHED}").write_bytes(b"x" * 10 * SIZE)
    draft = PackedCache(tmp_path, MANY).begin(wanted())
    assert draft.memory[:] == bytes(SIZE)  # padding is zeros, and nobody writes it
    draft.commit()
    assert found(PackedCache(tmp_path, MANY)).memory[:] == bytes(SIZE)


def test_a_lock_that_is_lost_for_a_moment_costs_the_file_and_no_byte_in_use(tmp_path: Path) -> None:
    """flock(2): a lock that changes its kind may be nobody's in between."""
    cache = PackedCache(tmp_path, MANY)
    first = cache.begin(wanted())
    first.memory[:] = b"\7" * SIZE
    fcntl.flock(first._fd, fcntl.LOCK_UN)
    second = cache.begin(wanted())
    assert first.memory[:] == b"\7" * SIZE
    second.commit()
    with pytest.raises(FileNotFoundError):
        first.commit()
    assert first.memory[:] == b"\7" * SIZE


def test_the_writer_itself_counts_as_using_its_file(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    draft = cache.begin(wanted())
    draft.commit()
    small = PackedCache(tmp_path, SIZE + PAGE_BYTES)
    with pytest.raises(CacheError, match="in use"):
        small.begin(wanted("b" * 32))
    del draft
    put(small, wanted("b" * 32))


def test_more_than_the_budget_is_refused_before_anything_is_evicted(tmp_path: Path) -> None:
    put(PackedCache(tmp_path, MANY))
    with pytest.raises(CacheError, match=r"the budget is 4\.00 KiB"):
        PackedCache(tmp_path, 4096).begin(wanted("b" * 32))
    assert len(names(tmp_path)) == 1


def test_strangers_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x" * 100)
    (tmp_path / f"directory{COMPLETE}").mkdir()
    cache = PackedCache(tmp_path, SIZE + PAGE_BYTES)
    put(cache)
    put(cache, wanted("b" * 32))
    assert names(tmp_path) == [f"{'b' * 32}{COMPLETE}", f"directory{COMPLETE}", "notes.txt"]


@contextlib.contextmanager
def without_privileges(directory: Path) -> Iterator[None]:
    """As a user who may read the directory, and write nowhere."""
    for path in (directory, *directory.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.getuid() != 0:
        yield
        return
    for parent in directory.parents[:3]:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_for_reading_only_serves_hits_and_refuses_drafts(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    put(cache)
    with without_privileges(tmp_path):
        assert found(cache).memory[0] == 7
        with pytest.raises(CacheError, match="cannot be written: Permission denied"):
            cache.begin(wanted("b" * 32))
    tmp_path.chmod(0o755)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written"):
        PackedCache(tmp_path / "file" / "below", MANY).begin(wanted())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_neither_served_nor_removed(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    path = put(cache)
    os.chown(path, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        cache.find(wanted())
    assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_refuses_the_draft_and_leaves_nothing(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, begin: int, num_bytes: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"has no room for 24\.0 KiB"):
        PackedCache(tmp_path, MANY).begin(wanted())
    assert names(tmp_path) == []


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    try:
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        pytest.skip("mounting a file system needs privileges")
    try:
        yield
    finally:
        # Lazily: a test that failed may still have a file mapped.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_file_system_that_is_really_full_refuses_the_draft(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=64k"):
        with pytest.raises(CacheError, match="has no room for"):
            PackedCache(tmp_path, MANY).begin(wanted(num_bytes=1 << 20))
        assert names(tmp_path) == []
        put(PackedCache(tmp_path, MANY))


def test_a_use_counts_on_file_systems_that_do_not_note_it(tmp_path: Path) -> None:
    with mounted(tmp_path, "noatime"):
        size = put(PackedCache(tmp_path, MANY), wanted("0" * 32)).stat().st_size
        cache = PackedCache(tmp_path, 2 * size)
        put(cache, wanted("1" * 32))
        written, used = (time.time_ns() - age * 10**9 for age in (90, 80))
        for key, later in (("0", 0), ("1", 10**9)):
            os.utime(tmp_path / f"{key * 32}{COMPLETE}", ns=(used + later, written))
        age_s = found(cache, wanted("0" * 32)).age_s  # mapped and let go of
        assert 89 < age_s < 200
        put(cache, wanted("2" * 32))
        assert [name[0] for name in names(tmp_path)] == ["0", "2"]


def test_a_disk_that_fails_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    draft = PackedCache(tmp_path, MANY).begin(wanted())
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        draft.commit()
    assert names(tmp_path) == []


def hold_a_draft(directory: Path, ready: Callable[[], object]) -> None:
    draft = PackedCache(directory, MANY).begin(wanted())
    draft.memory[:] = b"\3" * SIZE
    ready()
    time.sleep(60)


def test_a_writer_that_dies_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    event = context.Event()
    writer = context.Process(target=hold_a_draft, args=(tmp_path, event.set))
    writer.start()
    assert event.wait(30)
    cache = PackedCache(tmp_path, MANY)
    with pytest.raises(CacheBusyError):
        cache.begin(wanted())
    put(cache, wanted("b" * 32))
    assert f"{'a' * 32}{UNFINISHED}" in names(tmp_path)  # in use, so it stays
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    put(cache, wanted("c" * 32))
    assert [name[0] for name in names(tmp_path)] == ["b", "c"]
    draft = cache.begin(wanted())
    assert draft.memory[:] == bytes(SIZE)  # nothing of what had been written
    draft.discard()


def race(directory: Path, barrier: Callable[[], object], results: Callable[[str], object]) -> None:
    cache = PackedCache(directory, MANY)
    barrier()
    hit = cache.find(wanted())
    if hit is None:
        try:
            put(cache)
        except CacheBusyError:
            results("busy")
        else:
            results("written")
    else:
        results("hit" if hit.memory[:] == b"\7" * SIZE else "wrong")


def test_several_processes_at_once_all_get_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=race, args=(tmp_path, barrier.wait, queue.put)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    outcomes = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert "written" in outcomes
    assert set(outcomes) <= {"written", "busy", "hit"}
    assert found(PackedCache(tmp_path, MANY), verify=True).memory[0] == 7
    assert names(tmp_path) == [f"{'a' * 32}{COMPLETE}"]


def test_a_note_is_found_with_the_bytes_and_goes_with_them(tmp_path: Path) -> None:
    total = SIZE + len(encode_header(wanted()))
    cache = PackedCache(tmp_path, total)
    draft = cache.begin(wanted())
    draft.commit(b"what it cost")
    result = found(cache)
    assert result.note == b"what it cost"
    assert names(tmp_path) == [f"{'a' * 32}{NOTE}", f"{'a' * 32}{COMPLETE}"]
    result.memory.close()
    del draft, result
    gc.collect()
    put(cache, wanted("b" * 32))  # there is room for one
    assert names(tmp_path) == [f"{'b' * 32}{COMPLETE}"]
    assert found(cache, wanted("b" * 32)).note == b""


def test_a_note_that_cannot_be_written_costs_no_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PackedCache(tmp_path, MANY)
    cache.begin(wanted()).commit(b"of another file")
    (tmp_path / f"{'a' * 32}{COMPLETE}").unlink()

    def refuse(path: Path, _: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    cache.begin(wanted()).commit(b"what it cost")
    result = found(cache)
    assert result.memory
    assert result.note == b""  # nor is it the other file's


def test_a_note_that_is_lost_is_none(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, MANY)
    cache.begin(wanted()).commit(b"note")
    (tmp_path / f"{'a' * 32}{NOTE}").unlink()
    assert found(cache).note == b""
