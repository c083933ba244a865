"""What is read ahead of the packing: in its order, within a window, never twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hearth.core.spec import DType
from hearth.models import read_ahead as module
from hearth.models.read_ahead import MAX_WINDOW_BYTES, ReadAhead, is_cached, window_bytes
from hearth.models.safetensors_file import TensorEntry
from hearth.models.weight_plan import PIECE_BYTES, Piece

MIB, GIB = 1 << 20, 1 << 30
SIZE = 100


class Asked:
    """Ranges that the kernel was asked for, with a way to wait for the next one."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._changed = threading.Condition()

    def __call__(self, fd: int, begin: int, num_bytes: int) -> None:
        os.fstat(fd)  # it is open
        with self._changed:
            self.ranges.append((begin, num_bytes))
            self._changed.notify_all()

    def wait_for(self, num_ranges: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ranges) >= num_ranges, 10)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(module, "warm_range", found)
    monkeypatch.setattr(module, "is_cached", lambda *_: False)
    return found


def pieces(path: Path, count: int) -> list[Piece]:
    path.write_bytes(bytes(SIZE * count))
    entry = TensorEntry(path, "a", "F32", (SIZE * count // 4,), 0, SIZE * count)
    return [
        Piece(entry, DType.FLOAT32, (SIZE // 4,), index * SIZE, SIZE, 0) for index in range(count)
    ]


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def begins(asked: Asked) -> list[int]:
    return [begin // SIZE for begin, _ in asked.ranges]


def test_pieces_are_asked_for_in_order_and_no_farther_than_the_window(
    tmp_path: Path, asked: Asked
) -> None:
    found = pieces(tmp_path / "file", 10)
    with ReadAhead(found, 3 * SIZE) as ahead:
        asked.wait_for(3)
        for index, piece in enumerate(found):
            assert len(asked.ranges) <= 3 + index
            ahead.need(piece)
            ahead.packed(piece)
            asked.wait_for(min(10, 4 + index))
    assert begins(asked) == list(range(10))


def test_what_is_needed_first_is_asked_for_at_once_and_not_again(
    tmp_path: Path, asked: Asked
) -> None:
    found = pieces(tmp_path / "file", 6)
    with ReadAhead(found, 2 * SIZE) as ahead:
        asked.wait_for(2)
        ahead.need(found[4])  # beyond the window
        assert begins(asked) == [0, 1, 4]
        ahead.need(found[0])
        for piece in found:
            ahead.packed(piece)
        asked.wait_for(6)
    assert sorted(begins(asked)) == list(range(6))


def test_it_ends_with_the_packing_wherever_it_is(tmp_path: Path, asked: Asked) -> None:
    found = pieces(tmp_path / "file", 100)
    num_open, num_threads = num_descriptors(), threading.active_count()
    with ReadAhead(found, SIZE):
        asked.wait_for(1)
        assert num_descriptors() == num_open + 1
    assert num_descriptors() == num_open
    assert threading.active_count() == num_threads
    assert begins(asked) == [0]


def test_what_is_cached_is_passed_over(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_cached", lambda _fd, begin, _size: begin < 4 * SIZE)
    found = pieces(tmp_path / "file", 6)
    with ReadAhead(found, GIB):
        asked.wait_for(2)
    assert begins(asked) == [4, 5]


def test_files_on_which_no_advice_can_be_given_are_left_to_who_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def refuse(_fd: int, begin: int, *_: object) -> None:
        refused.append(begin)
        raise OSError("no advice here")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    monkeypatch.setattr(module, "is_cached", lambda *_: False)  # it was written just now
    found = pieces(tmp_path / "file", 3)
    num_open, num_threads = num_descriptors(), threading.active_count()
    with ReadAhead(found, GIB) as ahead:
        ahead.need(found[0])
        ahead.packed(found[0])
    assert refused
    num_refused = len(refused)
    (tmp_path / "file").unlink()
    with ReadAhead(found, GIB) as ahead:
        ahead.need(found[1])
        ahead.packed(found[1])
    assert len(refused) == num_refused  # there is nothing to be asked about
    assert (num_descriptors(), threading.active_count()) == (num_open, num_threads)


def test_the_window_leaves_the_memory_to_the_weights() -> None:
    assert window_bytes(64 * GIB, 8 * GIB) == MAX_WINDOW_BYTES
    assert window_bytes(9 * GIB, 8 * GIB) == GIB // 4
    assert window_bytes(8 * GIB, 8 * GIB) == 2 * PIECE_BYTES
    assert window_bytes(1 * GIB, 8 * GIB) == 2 * PIECE_BYTES


def test_a_range_is_cached_when_all_its_pages_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * MIB))
    with path.open("rb") as file:
        fd = file.fileno()
        if not is_cached(fd, 0, 1):  # although it has just been written
            pytest.skip("no cachestat(2), which Linux has since 6.5")
        assert is_cached(fd, 5, 8 * MIB - 5)
        assert is_cached(fd, 5, 0)
        os.fsync(fd)
        # The kernel drops a large folio, of up to 2 MiB, as a whole or not at all.
        os.posix_fadvise(fd, 4 * MIB, 4 * MIB, os.POSIX_FADV_DONTNEED)
        if is_cached(fd, 4 * MIB, 4 * MIB):
            pytest.skip("a file system in memory")
        assert is_cached(fd, 0, 4 * MIB)
        assert not is_cached(fd, 3 * MIB, 2 * MIB)


@pytest.mark.parametrize("answer", [-1, 38])
def test_a_kernel_that_does_not_tell_is_asked_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    class Libc:
        syscall: Callable[..., int] = staticmethod(lambda *_: answer)

    monkeypatch.setattr(module, "_libc", Libc)
    assert not is_cached(0, 0, 100)
