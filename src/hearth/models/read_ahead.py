"""Has the kernel read a checkpoint some way ahead of who packs it, in the order of the packing.

    asked for     posix_fadvise(WILLNEED), by the thread of its own or by who needs it first
    window        bytes that are asked for and not packed yet; never more, so that with little
                  memory nothing is read that would be evicted before it is used

A packing thread alone reads, waits, packs, and lets the disk rest meanwhile; it jumps about in the
file, so that the kernel's own readahead does not help. What is in the page cache already is passed
over where the kernel can tell (cachestat(2), Linux 6.5).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from hearth.hub.warm import warm_range
from hearth.models.weight_plan import PIECE_BYTES, AnyPiece

MAX_WINDOW_BYTES = 512 << 20
# Of the memory that is free when the weights have their place.
_WINDOW_SHARE = 4
_SYS_CACHESTAT = 451  # x86-64 and arm64


def window_bytes(available_bytes: int, packed_bytes: int) -> int:
    """How far ahead may be read, beside weights that will take so much of what is available."""
    free = (available_bytes - packed_bytes) // _WINDOW_SHARE
    return max(2 * PIECE_BYTES, min(MAX_WINDOW_BYTES, free))


class ReadAhead:
    """A context around the packing of pieces; `pieces` in the order in which they are begun."""

    def __init__(self, pieces: Sequence[AnyPiece], window: int) -> None:
        """`window`: in bytes; the piece that is asked for next may exceed it."""
        self._pieces = pieces
        self._window = window
        self._is_asked = [False] * len(pieces)
        self._indices = {id(piece): index for index, piece in enumerate(pieces)}
        self._ahead = 0  # bytes asked for, not packed
        self._is_over = False
        self._changed = threading.Condition()
        self._files: Mapping[Path, int] = {}
        self._thread = threading.Thread(target=self._run, name="hearth-read-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._files = _opened({piece.path for piece in self._pieces})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()
        for fd in self._files.values():
            os.close(fd)

    def need(self, piece: AnyPiece) -> None:
        """Before a piece is read: asks for it, where that has not been done yet."""
        self._ask(self._indices[id(piece)])

    def packed(self, piece: AnyPiece) -> None:
        """It will not be read again."""
        with self._changed:
            self._ahead -= piece.num_bytes
            self._changed.notify()

    def _run(self) -> None:
        for index in range(len(self._pieces)):
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or self._ahead < self._window)
                if self._is_over:
                    return
            self._ask(index)

    def _ask(self, index: int) -> None:
        piece = self._pieces[index]
        with self._changed:
            if self._is_asked[index]:
                return
            self._is_asked[index] = True
            self._ahead += piece.num_bytes
        fd = self._files.get(piece.path)
        if fd is not None and not is_cached(fd, piece.begin, piece.num_bytes):
            with contextlib.suppress(OSError):  # advice: who reads will find out
                warm_range(fd, piece.begin, piece.num_bytes)


def is_cached(fd: int, begin: int, num_bytes: int) -> bool:
    """Whether all of a range is in the page cache; False where the kernel does not tell."""
    if num_bytes <= 0:
        return True
    page = os.sysconf("SC_PAGE_SIZE")
    area = (ctypes.c_uint64 * 2)(begin, num_bytes)
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, writeback, evicted, recently evicted
    if _libc().syscall(_SYS_CACHESTAT, fd, area, counts, 0) != 0:
        return False
    num_pages = (begin + num_bytes - 1) // page - begin // page + 1
    return bool(counts[0] >= num_pages)


def _opened(paths: set[Path]) -> dict[Path, int]:
    """File descriptors; without those that cannot be opened."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return found


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    return libc
