"""Pages are read in, protected and moved without their bytes changing."""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from hearth.kernels.cpu import pages

SIZE = 40 * mmap.PAGESIZE


def mapped_file(path: Path, num_bytes: int = SIZE) -> NDArray[np.uint8]:
    content = np.random.default_rng(0).integers(0, 255, num_bytes, np.uint8)
    path.write_bytes(content.tobytes())
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), np.uint8)


def facts_of(address: int) -> tuple[str, list[str]]:
    """What the kernel says of the mapping that begins there: sizes and flags."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    sizes, _, rest = text.partition(f"\n{address:x}-")[2].partition("VmFlags:")
    return sizes, rest.partition("\n")[0].split()


def resident_bytes(address: int) -> int:
    """How much of the mapping that begins there is in this process's page tables."""
    (size,) = re.findall(r"\nRss:\s+(\d+) kB", facts_of(address)[0])
    return int(size) << 10


def test_reading_in_reports_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_STEP_BYTES", 16 * mmap.PAGESIZE)
    array = mapped_file(tmp_path / "file")
    seen: list[tuple[int, int]] = []
    pages.read_in(array.ctypes.data, SIZE, lambda done, total: seen.append((done, total)))
    assert resident_bytes(array.ctypes.data) == SIZE
    assert seen == [(n * mmap.PAGESIZE, SIZE) for n in (16, 32, 40)]


def test_an_older_kernel_reads_in_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MADV_POPULATE_READ", 12345)
    array = mapped_file(tmp_path / "file")
    assert resident_bytes(array.ctypes.data) < SIZE
    pages.read_in(array.ctypes.data, SIZE, lambda done, total: None)
    assert resident_bytes(array.ctypes.data) == SIZE


def test_a_mapping_that_is_read_in_asks_for_huge_pages(tmp_path: Path) -> None:
    array = mapped_file(tmp_path / "file")
    pages.read_in(array.ctypes.data, SIZE, lambda done, total: None)
    assert "hg" in facts_of(array.ctypes.data)[1]


def test_a_kernel_without_huge_pages_reads_in_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)
    array = mapped_file(tmp_path / "file")
    assert not pages.ask_for_huge_pages(array.ctypes.data, SIZE)
    pages.read_in(array.ctypes.data, SIZE, lambda done, total: None)
    assert resident_bytes(array.ctypes.data) == SIZE


def test_a_page_that_cannot_be_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    array = mapped_file(tmp_path / "file")
    os.truncate(tmp_path / "file", SIZE // 2)  # reading beyond it would be SIGBUS
    with pytest.raises(OSError, match="a page cannot be read"):
        pages.read_in(array.ctypes.data, SIZE, lambda done, total: None)


@pytest.mark.parametrize(("release", "asks"), [("5.15.0-91-generic", True), ("6.8.0", False)])
def test_kernels_whose_faults_read_little_get_one_large_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, asks: bool
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    calls: list[int] = []
    madvise = pages._libc().madvise

    def note(address: int, num_bytes: int, advice: int) -> int:
        calls.append(advice)
        return int(madvise(address, num_bytes, advice))

    monkeypatch.setattr(pages._libc(), "madvise", note)
    array = mapped_file(tmp_path / "file")
    pages.read_in(array.ctypes.data, SIZE, lambda done, total: None)
    assert (mmap.MADV_WILLNEED in calls) == asks
    assert resident_bytes(array.ctypes.data) == SIZE


def test_a_copy_takes_the_place_of_a_file_at_the_same_address(tmp_path: Path) -> None:
    array = mapped_file(tmp_path / "file")
    before, address = array.copy(), array.ctypes.data
    pages.replace_by_copy(address, SIZE)
    assert np.array_equal(array, before)
    (tmp_path / "file").write_bytes(b"")  # would end the process if the pages were still its own
    assert np.array_equal(array, before)
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [[int(edge, 16) for edge in re.findall(r"\w+", line.split()[0])] for line in lines]
    (line,) = (line for line, (low, high) in zip(lines, spans) if low <= address < high)
    assert "file" not in line


def test_a_write_to_protected_pages_ends_the_process() -> None:
    code = (
        "import mmap, numpy as np; from hearth.kernels.cpu import pages;"
        "array = np.frombuffer(mmap.mmap(-1, 4096), np.uint8);"
        "pages.forbid_writes(array.ctypes.data, 4096); print(array[0], flush=True); array[0] = 1"
    )
    # A sanitizer would catch the signal and end the process its own way.
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=env)
    assert done.stdout == b"0\n"
    assert done.returncode == -signal.SIGSEGV
