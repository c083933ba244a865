"""How fast a disk reads: in one go, and here and there.

Reads past the page cache (O_DIRECT) where the file system can, else from what was dropped from it.
Nothing is changed: a file of the user's is read, or one of bounded size is made for the time of the
measurement.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hearth.core.units import MIB
from hearth.host.disk import read_disk

CHUNK_BYTES = 4 * MIB
PAGE_BYTES = 4096
MOST_BYTES = 512 * MIB  # that are read in one go
MOST_S = 2.0  # of reading in one go; half of it here and there
FILE_BYTES = 256 * MIB  # of a file that is made
RANDOM_READS = 500


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Of the disk that holds the directory `path`.

    `is_direct`: the page cache had no part in it. Latencies are those of single reads of 4 KiB.
    """

    path: str
    read_bytes_s: float
    random_read_s: float  # median
    random_read_p99_s: float
    is_direct: bool
    source: str


def measure_disk(directory: Path) -> DiskSpeed:
    """Reads the largest file below a directory, or makes one there. Raises OSError.

    An OSError says that there is neither a file to read nor room or permission to make one.
    """
    with _some_file(directory) as (path, source):
        size = path.stat().st_size
        with _opened(path) as opened:
            read_bytes_s = _read_through(opened, size)
            latencies = _read_here_and_there(opened, size)
    return DiskSpeed(
        path=str(directory.absolute()),
        read_bytes_s=read_bytes_s,
        random_read_s=statistics.median(latencies),
        random_read_p99_s=sorted(latencies)[int(0.99 * (len(latencies) - 1))],
        is_direct=opened.is_direct,
        source=source,
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    descriptor: int
    buffer: mmap.mmap  # aligned to a page, as O_DIRECT asks
    is_direct: bool

    def read_s(self, offset: int, num_bytes: int) -> float:
        """Seconds of one read."""
        with memoryview(self.buffer)[:num_bytes] as view:
            before = time.perf_counter()
            os.preadv(self.descriptor, [view], offset)
            return time.perf_counter() - before


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    """Without the page cache where the file system can: some refuse at once, some when reading."""
    with mmap.mmap(-1, CHUNK_BYTES) as buffer:
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            os.preadv(descriptor, [memoryview(buffer)[:PAGE_BYTES]], 0)
            is_direct = True
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            is_direct = False
        try:
            yield _Opened(descriptor, buffer, is_direct)
        finally:
            os.close(descriptor)


def _read_through(opened: _Opened, size: int) -> float:
    """Bytes a second from the file's begin on."""
    done, seconds = 0, 0.0
    whole = size // CHUNK_BYTES * CHUNK_BYTES or size // PAGE_BYTES * PAGE_BYTES
    chunk = min(CHUNK_BYTES, whole)
    while done < min(whole, MOST_BYTES) and seconds < MOST_S:
        seconds += opened.read_s(done, chunk)
        done += chunk
    return done / max(seconds, 1e-9)


def _read_here_and_there(opened: _Opened, size: int) -> list[float]:
    """Seconds of single pages at places that are the same each time."""
    places = random.Random(1)
    pages = size // PAGE_BYTES
    latencies: list[float] = []
    begin = time.perf_counter()
    while len(latencies) < RANDOM_READS and time.perf_counter() - begin < MOST_S / 2:
        offset = places.randrange(pages) * PAGE_BYTES
        if not opened.is_direct:
            os.posix_fadvise(opened.descriptor, offset, PAGE_BYTES, os.POSIX_FADV_DONTNEED)
        latencies.append(opened.read_s(offset, PAGE_BYTES))
    return latencies


@contextmanager
def _some_file(directory: Path) -> Iterator[tuple[Path, str]]:
    """A file that is long enough, and what it is."""
    found = _largest_file(directory)
    if found is not None:
        yield found, f"reading {found.name}"
        return
    existing = next(p for p in (directory, *directory.parents) if p.is_dir())
    free = read_disk(existing).free_bytes
    if free < 4 * FILE_BYTES:
        raise OSError(f"too little room in {existing} for a file to measure with")
    # Without a name, so that it is gone whatever happens.
    with tempfile.TemporaryFile(dir=existing) as file:
        block = os.urandom(CHUNK_BYTES)  # some disks do not store what they can compress away
        for _ in range(FILE_BYTES // CHUNK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        yield (
            Path(f"/proc/self/fd/{file.fileno()}"),
            f"a file of {FILE_BYTES // MIB} MiB made for it",
        )


def _largest_file(directory: Path) -> Path | None:
    """The largest one of at least as much as would be made; None: there is none."""
    files = [p for p in directory.glob("*") if p.is_file()] if directory.is_dir() else []
    largest = max(files, key=lambda p: p.stat().st_size, default=None)
    if largest is None or largest.stat().st_size < FILE_BYTES or not os.access(largest, os.R_OK):
        return None
    return largest
