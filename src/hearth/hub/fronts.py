"""The beginnings of files on a hub, by range requests: as much as is needed, and never a file.

The first request asks for FIRST_BYTES, which hold most headers; what they say tells how much more
is needed. A server that ignores ranges sends the file from its beginning: it is read as far as
needed, then the connection is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from hearth.core.errors import RemoteError
from hearth.core.units import format_bytes
from hearth.hub.download import Fetcher, StoppedError, check_range, check_status
from hearth.hub.listing import RemoteFile
from hearth.hub.transport import Attempts, RetryableError

if TYPE_CHECKING:
    import httpx

FIRST_BYTES = 64 << 10
# Of all files together. The largest models have some ten MiB of headers.
MOST_BYTES = 256 << 20
_NUM_WORKERS = 8
_POLL_S = 0.05

# How many bytes of a file are needed, from those that are there; more than there are: it is asked
# again when they have come. Raises where the file cannot have them.
Needed: TypeAlias = Callable[[RemoteFile, bytes], int]


def read_fronts(
    fetcher: Fetcher, files: Sequence[RemoteFile], needed: Needed, min_bytes: int
) -> dict[str, bytes]:
    """The beginnings of files, by path, several at a time.

    `needed` is asked once `min_bytes` of a file, or all of a shorter one, are there. Raises what it
    raises, what the source refuses, UnreachableError, RemoteError; StoppedError once
    `fetcher.stopped` is set.
    """
    budget, stop = _Budget(MOST_BYTES), _Stop(fetcher.stopped)

    def read(file: RemoteFile) -> bytes:
        return _Front(fetcher, file, needed, min_bytes, budget, stop).read()

    workers = max(1, min(_NUM_WORKERS, len(files)))
    with ThreadPoolExecutor(workers, thread_name_prefix="hearth-headers") as pool:
        futures = [pool.submit(read, file) for file in files]
        try:
            return {file.path: future.result() for file, future in zip(files, futures, strict=True)}
        except BaseException:
            stop.set()  # for those that still read
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stop:
    """What ends the reading of these files: the failure of one, or the event from outside.

    The event stays as it is: another source may be asked next.
    """

    def __init__(self, outer: threading.Event) -> None:
        self._outer, self._own = outer, threading.Event()

    def set(self) -> None:
        self._own.set()

    def is_set(self) -> bool:
        return self._own.is_set() or self._outer.is_set()

    def wait(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            self._own.wait(min(_POLL_S, left))
        return self.is_set()


class _Budget:
    """Bytes that may still be read, by all threads."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._lock = threading.Lock()

    def take(self, num_bytes: int, source: str) -> None:
        with self._lock:
            self._left -= num_bytes
            if self._left < 0:
                raise RemoteError(
                    f"{source} sends headers of weights with more than {format_bytes(MOST_BYTES)}",
                    hint="no model has as many: do not use this source",
                )


class _Front:
    """One file's beginning; for one thread."""

    def __init__(
        self,
        fetcher: Fetcher,
        file: RemoteFile,
        needed: Needed,
        min_bytes: int,
        budget: _Budget,
        stop: _Stop,
    ) -> None:
        self._fetcher = fetcher
        self._file = file
        self._needed = needed
        self._min_bytes = min(min_bytes, file.num_bytes)
        self._budget = budget
        self._stop = stop
        self._data = bytearray()
        self._known_end = 0

    def read(self) -> bytes:
        transport = self._fetcher.transport
        attempts = Attempts(transport.retry, self._file.path, transport.note, self._stop.wait)
        reached = 0
        while len(self._data) < self._end():
            try:
                self._request(self._end())
            except RetryableError as failure:
                if len(self._data) > reached:
                    reached = len(self._data)
                    attempts.progressed()
                attempts.failed(failure.error, failure.wait_s)
            if self._stop.is_set():
                raise StoppedError
        return bytes(self._data[: self._end()])

    def _end(self) -> int:
        """How far to read, as far as that is known."""
        if len(self._data) < self._min_bytes:
            return min(FIRST_BYTES, self._file.num_bytes)
        if len(self._data) >= self._known_end:
            self._known_end = self._needed(self._file, bytes(self._data))
        return self._known_end

    def _request(self, end: int) -> None:
        """One request for what is missing up to `end`. Raises RetryableError if it brings less."""
        begin = len(self._data)
        headers = {**self._fetcher.listing.headers, "Range": f"bytes={begin}-{end - 1}"}
        with self._fetcher.transport.stream(self._file.url, headers) as response:
            check_status(self._fetcher, self._file, response)
            if response.status_code == 206:
                check_range(self._fetcher, self._file, response, begin)
                self._copy(response, lambda: end)
            else:
                self._data.clear()
                self._copy(response, self._end)
        if len(self._data) < end and len(self._data) < self._end():
            label = self._fetcher.listing.source
            message = f"{label} sent {len(self._data):,} of {end:,} bytes of {self._file.path}"
            raise RetryableError(RemoteError(message), None)

    def _copy(self, response: httpx.Response, end: Callable[[], int]) -> None:
        for chunk in response.iter_bytes():
            if self._stop.is_set():
                raise StoppedError
            self._budget.take(len(chunk), self._fetcher.listing.source)
            self._data += chunk
            if len(self._data) >= end():
                return
