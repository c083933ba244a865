"""Pixels between the processes: readable by a child, bounded, never another image's."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hearth.core.errors import OverloadedError, RequestError
from hearth.core.images import ImageInput
from hearth.engine.images.loader import digest_of
from hearth.engine.images.pixels import PixelFile, PixelStore, can_share_memfd, open_pixels

SIDE = 14
GRID = (2, 4)
NUM_BYTES = GRID[0] * GRID[1] * SIDE * SIDE * 3


def pixels(value: int = 1) -> bytes:
    return bytes([value]) * NUM_BYTES


def keep(store: PixelStore, content: bytes | None = None) -> tuple[PixelFile, ImageInput]:
    content = pixels() if content is None else content
    digest = digest_of(*GRID, content)
    store.reserve(len(content))
    file = store.keep(digest, content)
    return file, ImageInput(digest, 0, 2, *GRID, path=file.path)


stores = pytest.mark.parametrize("max_open", [256, 0], ids=["memfd", "file"])


@stores
def test_a_child_process_reads_what_was_written(tmp_path: Path, max_open: int) -> None:
    file, _ = keep(PixelStore(max_open=max_open, directory=str(tmp_path)))
    code = f"import sys; sys.stdout.buffer.write(open({file.path!r}, 'rb').read())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout == pixels()
    file.close()


@stores
def test_the_engine_maps_them_and_keeps_them_beyond_their_end(
    tmp_path: Path, max_open: int
) -> None:
    store = PixelStore(max_open=max_open, directory=str(tmp_path))
    file, image = keep(store)
    found = open_pixels(image, SIDE)
    assert found.shape == (GRID[0] * SIDE, GRID[1] * SIDE, 3)
    assert not found.flags.writeable
    file.close()
    file.close()
    assert np.all(found == 1)
    assert store.num_bytes == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RequestError, match="are gone"):
        open_pixels(image, SIDE)


@pytest.mark.skipif(not can_share_memfd(), reason="no memfd that a child could open")
def test_a_descriptor_that_is_used_again_is_not_taken_for_the_old_image() -> None:
    store = PixelStore()
    file, image = keep(store)
    file.close()
    other, theirs = keep(store, pixels(2))
    assert theirs.path == image.path  # the kernel gives the lowest free number
    with pytest.raises(RequestError, match="those of another one"):
        open_pixels(image, SIDE)
    assert np.all(open_pixels(theirs, SIDE) == 2)
    other.close()


@stores
def test_a_file_of_another_size_is_refused(tmp_path: Path, max_open: int) -> None:
    store = PixelStore(max_open=max_open, directory=str(tmp_path))
    file, image = keep(store)
    wrong = ImageInput(image.digest, 0, 4, GRID[0], GRID[1] + 2, image.path)
    with pytest.raises(RequestError, match=r"of 4,704 bytes \(7,056 expected"):
        open_pixels(wrong, SIDE)
    file.close()


@stores
def test_pixels_are_bounded_all_together(tmp_path: Path, max_open: int) -> None:
    store = PixelStore(2 * NUM_BYTES, max_open, str(tmp_path))
    first, _ = keep(store)
    second, _ = keep(store)
    with pytest.raises(OverloadedError, match="permitted are"):
        store.reserve(1)
    first.close()
    third, _ = keep(store)
    for file in (second, third):
        file.close()
    assert store.num_bytes == 0


def test_a_reservation_is_given_back() -> None:
    store = PixelStore(10)
    store.reserve(10)
    with pytest.raises(OverloadedError):
        store.reserve(1)
    assert store.num_bytes == 10
    store.release(10)
    assert store.num_bytes == 0
    store.reserve(10)


@pytest.mark.skipif(not can_share_memfd(), reason="no memfd that a child could open")
def test_beyond_so_many_descriptors_files_are_written(tmp_path: Path) -> None:
    store = PixelStore(max_open=1, directory=str(tmp_path))
    first, _ = keep(store)
    second, image = keep(store)
    assert first.path.startswith("/proc/")
    assert Path(second.path).parent == tmp_path
    assert np.all(open_pixels(image, SIDE) == 1)
    first.close()
    third, _ = keep(store)
    assert third.path.startswith("/proc/")
    second.close()
    third.close()


@stores
def test_what_nobody_knows_any_more_is_given_back(tmp_path: Path, max_open: int) -> None:
    store = PixelStore(max_open=max_open, directory=str(tmp_path))
    file, _ = keep(store)
    del file
    gc.collect()
    assert store.num_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_an_overload_and_leaves_the_reservation_to_the_caller(tmp_path: Path) -> None:
    store = PixelStore(max_open=0, directory=str(tmp_path / "missing"))
    store.reserve(NUM_BYTES)
    with pytest.raises(OverloadedError, match="find no room"):
        store.keep(bytes(32), pixels())
    assert store.num_bytes == NUM_BYTES


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    store = PixelStore(max_open=0, directory=str(tmp_path))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OverloadedError, match="No space left"):
        store.keep(bytes(32), pixels())
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_may_not_be_looked_into_writes_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not can_share_memfd()
    monkeypatch.delattr(os, "memfd_create")
    assert not can_share_memfd()


def test_the_digest_depends_on_sizes_and_pixels() -> None:
    digests = {digest_of(2, 4, b"a"), digest_of(4, 2, b"a"), digest_of(2, 4, b"b")}
    assert len(digests) == 3
    assert all(len(digest) == 32 for digest in digests)
