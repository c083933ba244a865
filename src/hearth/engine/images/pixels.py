"""Pixels of images in memory that both processes see, for as long as their request runs.

The front end writes them to a memfd and names it `/proc/<pid>/fd/<n>`; the engine, a child of the
same user, opens that name and maps it: nothing is copied, and nothing is left behind by a process
that is killed. A temporary file takes its place where there is no memfd, where this process may
not be looked into, and beyond so many descriptors.

A descriptor's number is used again once its file is closed, so such a path alone does not say
which image it is. Each memfd therefore has its image's digest as its name, which `open_pixels`
compares after it has opened it: a request that was cancelled meanwhile never gets another one's
picture.
"""

from __future__ import annotations

import functools
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.core.errors import OverloadedError, RequestError
from hearth.core.images import LEAST_PIXEL_BYTES, ImageInput
from hearth.core.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAME = "hearth-"
_MAX_OPEN = 256  # descriptors, of the 1,024 that a process usually may have


class PixelFile:
    """The pixels of one image, until `close`, or until nobody knows them any more."""

    def __init__(self, path: str, end: Callable[[], None]) -> None:
        """`end` is called once: by `close`, by the collector or at the interpreter's end."""
        self.path = path
        self._end = weakref.finalize(self, end)

    def close(self) -> None:
        """Gives the memory back. May be called twice."""
        self._end()


class PixelStore:
    """All pixels of one server, bounded; safe to use from several threads."""

    def __init__(
        self,
        max_total_bytes: int = LEAST_PIXEL_BYTES,
        max_open: int = _MAX_OPEN,
        directory: str | None = None,
    ) -> None:
        """`max_open`: memfds at a time; `directory`: of temporary files, None: the system's."""
        self._max_total_bytes = max_total_bytes
        self._max_open = max_open if can_share_memfd() else 0
        self._directory = directory
        self._lock = threading.RLock()  # the collector may end a file while it is held
        self._num_bytes = 0
        self._num_open = 0

    @property
    def num_bytes(self) -> int:
        """Reserved and kept."""
        return self._num_bytes

    def reserve(self, num_bytes: int) -> None:
        """Counts pixels that are about to be made. Raises OverloadedError."""
        with self._lock:
            total = self._num_bytes + num_bytes
            if total > self._max_total_bytes:
                raise OverloadedError(
                    f"the images of all requests have {format_bytes(total)} of pixels, permitted "
                    f"are {format_bytes(self._max_total_bytes)}",
                    hint="retry later, or send fewer or smaller images",
                )
            self._num_bytes = total

    def release(self, num_bytes: int) -> None:
        """Gives a reservation back."""
        with self._lock:
            self._num_bytes -= num_bytes

    def keep(self, digest: bytes, pixels: bytes) -> PixelFile:
        """Writes pixels that were reserved; the file gives the reservation back when it closes.

        Raises OverloadedError where there is no room; then the reservation stands.
        """
        with self._lock:
            is_memory = self._num_open < self._max_open
            self._num_open += is_memory
        try:
            descriptor, path = self._created(digest, is_memory)
            try:
                _write(descriptor, pixels)
            except OSError:
                _discard(descriptor, path, is_memory)
                raise
        except OSError as error:
            with self._lock:
                self._num_open -= is_memory
            raise OverloadedError(
                f"{format_bytes(len(pixels))} of pixels find no room: {error.strerror}",
                hint="retry later",
            ) from error
        if not is_memory:
            os.close(descriptor)
        end = functools.partial(self._end, descriptor, path, len(pixels), is_memory)
        return PixelFile(path, end)

    def _created(self, digest: bytes, is_memory: bool) -> tuple[int, str]:
        """Descriptor and path of an empty file."""
        name = f"{_NAME}{digest.hex()}"
        if is_memory:
            descriptor = os.memfd_create(name)
            return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
        return tempfile.mkstemp(prefix=f"{name}-", dir=self._directory)

    def _end(self, descriptor: int, path: str, num_bytes: int, is_memory: bool) -> None:
        if is_memory:
            os.close(descriptor)
        else:
            Path(path).unlink(missing_ok=True)
        with self._lock:
            self._num_bytes -= num_bytes
            self._num_open -= is_memory


def can_share_memfd() -> bool:
    """Whether a child process can open this process's descriptors by their path.

    Not where there is no memfd or no /proc, and not in a process that the kernel protects (one
    with file capabilities or another user's rights): its /proc entries belong to root.
    """
    try:
        return hasattr(os, "memfd_create") and Path("/proc/self/fd").stat().st_uid == os.geteuid()
    except OSError:
        return False


def open_pixels(image: ImageInput, patch_size: int) -> NDArray[np.uint8]:
    """The pixels, read-only, mapped: uint8 [grid_height · patch_size, grid_width · patch_size, 3].

    For the engine. The mapping outlives the file. Raises RequestError where the file is gone (the
    request has ended), belongs to another image or has another size.
    """
    import numpy as np

    shape = (image.grid_height * patch_size, image.grid_width * patch_size, 3)
    num_bytes = shape[0] * shape[1] * shape[2]
    try:
        descriptor = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor).st_size
            if found != num_bytes or not _is_of(image, descriptor):
                raise RequestError(
                    f"the pixels of an image are those of another one, of {found:,} bytes "
                    f"({num_bytes:,} expected)",
                    hint="send the request again",
                )
            mapped = mmap.mmap(descriptor, num_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RequestError(
            f"the pixels of an image are gone: {error.strerror}", hint="send the request again"
        ) from error
    return np.frombuffer(mapped, np.uint8).reshape(shape)


def _is_of(image: ImageInput, descriptor: int) -> bool:
    """Whether an opened file is the image's: any path but a descriptor's says so by itself."""
    if not image.path.startswith("/proc/"):
        return True
    target = str(Path(f"/proc/self/fd/{descriptor}").readlink())  # "/memfd:NAME (deleted)"
    return target.startswith(f"/memfd:{_NAME}{image.digest.hex()}")


def _write(descriptor: int, pixels: bytes) -> None:
    view = memoryview(pixels)
    while view:
        view = view[os.write(descriptor, view) :]


def _discard(descriptor: int, path: str, is_memory: bool) -> None:
    os.close(descriptor)
    if not is_memory:
        Path(path).unlink(missing_ok=True)
