"""Short benchmarks, one for each setting whose effect shows in seconds; and why others have none.

They need no model, leave nothing behind, and measure what hearth does: reading memory from the
beginning to the end, faulting it in, reading a file that is not in the page cache, connecting.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import tempfile
import time
from pathlib import Path

from hearth.core.units import MIB, format_bytes
from hearth.host.tune.actions import HostView
from hearth.host.tune.measure import Benchmark
from hearth.host.tune.runner import Item

MEMORY_BYTES = 512 * MIB
FILE_BYTES = 256 * MIB
_READ_BYTES = MIB
_PASSES = 3
_KEPT_FREE = 4  # a file may take one part in so many of the free space
# Connections beyond the former backlog, and no more than fit into it: what is dropped comes again
# all at once, and should be through by then.
_BURST_OVER = 1000
_ACCEPT_AFTER_S = 0.2  # for how long a busy server accepts nothing
_BURST_LIMIT_S = 20.0
_IDLE_S = 0.05
_GIGA = 1e9

_NOT_MEASURED = {
    "nofile": "a limit, with no speed to measure",
    "file-max": "a limit, with no speed to measure",
    "swappiness": "shows under memory pressure only, which takes longer to bring about and harms "
    "other programs",
    "hugepages": "hearth takes no page of the pool: there is nothing that it could gain",
}


def choose_benchmark(view: HostView, item: Item) -> Benchmark | str:
    """What measures this action here, or why nothing does: then it is left alone."""
    name = item.action.name
    if name in _NOT_MEASURED:
        return f"not measured, and left as it is: {_NOT_MEASURED[name]}"
    if name in ("thp", "thp-defrag"):
        is_filled = name == "thp-defrag"
        free = view.available_bytes
        if free is not None and free < 2 * MEMORY_BYTES:
            return f"not measured: {format_bytes(MEMORY_BYTES)} of memory are not free"
        return MemoryFill() if is_filled else MemoryRead()
    if name == "readahead":
        return _file_read(view.models_dir)
    if name == "somaxconn":
        return _burst(int(item.check.now), view.hard_open_files)
    if name == "governor":
        return WorkAfterPause()
    return "not measured, and left as it is: there is no benchmark for it"


class MemoryRead:
    """Anonymous memory that asked for huge pages, read from the beginning to the end."""

    name = "reading memory"
    unit = "GB/s"
    is_higher_better = True

    def run(self) -> float:
        """Pages are taken anew, under the present settings; taking them is not counted."""
        import numpy as np

        with _anonymous(MEMORY_BYTES) as memory:
            words = np.frombuffer(memory, np.uint64)
            words[:: mmap.PAGESIZE // 8] = 1  # a touch for each page
            best = min(_timed(words.sum) for _ in range(_PASSES))
            del words  # the map cannot be closed while an array lies on it
        return MEMORY_BYTES / best / _GIGA

    def close(self) -> None:
        """Holds nothing."""


class MemoryFill:
    """Anonymous memory that asked for huge pages, touched for the first time."""

    name = "faulting memory in"
    unit = "GB/s"
    is_higher_better = True

    def run(self) -> float:
        """Raises OSError where there is no memory for it."""
        import numpy as np

        with _anonymous(MEMORY_BYTES) as memory:
            words = np.frombuffer(memory, np.uint64)
            start = time.perf_counter()
            words[:: mmap.PAGESIZE // 8] = 1
            elapsed = time.perf_counter() - start
            del words
        return MEMORY_BYTES / elapsed / _GIGA

    def close(self) -> None:
        """Holds nothing."""


def _anonymous(num_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]  # any callable
    return time.perf_counter() - start


def _file_read(directory: Path) -> Benchmark | str:
    """A file on the disk of the models; none where it has too little space or may not be written.

    The directory itself may not exist yet: then the nearest one above it that does.
    """
    existing = next((p for p in (directory, *directory.parents) if p.is_dir()), Path("/"))
    try:
        found = os.statvfs(existing)
        if found.f_bavail * found.f_frsize < _KEPT_FREE * FILE_BYTES:
            return f"not measured: {existing} has too little free space for a file to read"
        return ColdFileRead(existing)
    except OSError as error:
        return f"not measured: no file can be written to {existing}: {error.strerror}"


class ColdFileRead:
    """A file without a name, so that nothing stays behind, read when it is not in memory."""

    name = "reading a file from disk"
    unit = "GB/s"
    is_higher_better = True

    def __init__(self, directory: Path, num_bytes: int = FILE_BYTES) -> None:
        self._num_bytes = num_bytes
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 -- see close
        try:
            block = os.urandom(_READ_BYTES)  # nothing that a disk could compress
            for number in range(num_bytes // _READ_BYTES):
                self._file.write(number.to_bytes(8, "little") + block[8:])
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.close()
            raise

    def run(self) -> float:
        """Opened anew: a file keeps the readahead with which it was opened."""
        descriptor = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            buffer = bytearray(_READ_BYTES)
            start = time.perf_counter()
            while os.readv(descriptor, [buffer]):
                pass
            return self._num_bytes / (time.perf_counter() - start) / _GIGA
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


def _burst(former: int, hard_limit: int) -> Benchmark | str:
    """More connections than fit into the former backlog; both ends are files of this process."""
    num_connections = former + min(former, _BURST_OVER)
    num_files = 2 * num_connections + 100
    if hard_limit >= 0 and num_files > hard_limit:
        return (
            f"not measured, and left as it is: {num_connections} connections at a time need "
            f"{num_files} open files, the limit is {hard_limit} (see nofile)"
        )
    return ConnectionBurst(num_connections)


class ConnectionBurst:
    """Connections that come while a server is busy and accepts nothing for a moment.

    Those that the backlog does not take are dropped, and try again after a second.
    """

    name = "a burst of connections, until all are through"
    unit = "s"
    is_higher_better = False

    def __init__(self, num_connections: int, backlog: int = 65535) -> None:
        import resource

        self._num = num_connections
        self._backlog = backlog
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 2 * num_connections + 100
        soft, hard = self._limits
        if 0 <= soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    def run(self) -> float:
        """Raises OSError where not all come through within 20 s."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.listen(self._backlog)
            listener.setblocking(False)
            start = time.perf_counter()
            for _ in range(self._num):
                client = stack.enter_context(_client())
                code = client.connect_ex(listener.getsockname())
                if code not in (0, errno.EINPROGRESS):
                    raise OSError(code, os.strerror(code))
            time.sleep(max(0.0, start + _ACCEPT_AFTER_S - time.perf_counter()))
            self._accept_all(listener, stack, start + _BURST_LIMIT_S)
            return time.perf_counter() - start

    def _accept_all(
        self, listener: socket.socket, stack: contextlib.ExitStack, deadline: float
    ) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        num_accepted = 0
        while num_accepted < self._num:
            if time.perf_counter() > deadline:
                missing = self._num - num_accepted
                raise OSError(errno.ETIMEDOUT, f"{missing} connections did not come through")
            poll.poll(100)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(listener.accept()[0])
                    num_accepted += 1

    def close(self) -> None:
        """The limit of open files is as it was."""
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)


def _client() -> socket.socket:
    """Closed with a reset: thousands of ports in TIME_WAIT would be in the way of the next run."""
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return client


class WorkAfterPause:
    """A step's worth of arithmetic after a pause, in which a governor may lower the clock."""

    name = "work after a pause"
    unit = "ms"
    is_higher_better = False

    def run(self) -> float:
        """The median of twenty."""
        import statistics

        import numpy as np

        values = np.ones((256, 256), np.float32)
        times = []
        for _ in range(20):
            time.sleep(_IDLE_S)
            times.append(_timed(lambda: values @ values))
        return statistics.median(times) * 1e3

    def close(self) -> None:
        """Holds nothing."""
