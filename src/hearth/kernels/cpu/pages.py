"""What the kernel is asked to do with ranges of mapped memory (Linux).

Through ctypes, which releases the GIL meanwhile: the mmap module does not, and reading a range
from disk takes seconds. Addresses and sizes are whole pages.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from hearth.core.errors import KernelError

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module knows it from Python 3.14 on
_FAULTS_READ_HUGE_PAGES = (5, 18)  # Linux
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_STEP_BYTES = 32 << 20
_MAX_THREADS = 4


def ask_for_huge_pages(address: int, num_bytes: int) -> bool:
    """Pages of this range that are not in memory yet come in 2 MiB where the kernel can do that.

    Anonymous memory does, and so do files on file systems with large folios (XFS; ext4 from Linux
    6.16 on); elsewhere they stay small. False: this kernel knows no such request.
    """
    return bool(_libc().madvise(address, num_bytes, mmap.MADV_HUGEPAGE) == 0)


def read_in(address: int, num_bytes: int, on_progress: Callable[[int, int], None]) -> None:
    """Has all pages of a mapping in memory and in this process's tables, so that none faults.

    From the page cache this takes about 50 ms a GiB, else as long as the disk. `on_progress`
    gets bytes, from one thread. Raises OSError where a page cannot be read.
    """
    is_huge = ask_for_huge_pages(address, num_bytes) and _kernel() >= _FAULTS_READ_HUGE_PAGES
    steps = [
        (address + begin, min(_STEP_BYTES, num_bytes - begin))
        for begin in range(0, num_bytes, _STEP_BYTES)
    ]
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)), len(steps))
    done = 0
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hearth-read") as pool:
        for (_, size), _ in zip(steps, pool.map(partial(_read_step, is_huge=is_huge), steps)):
            done += size
            on_progress(done, num_bytes)


def forbid_writes(address: int, num_bytes: int) -> None:
    """A stray write ends the process from now on, instead of changing a file of weights."""
    _check(_libc().mprotect(address, num_bytes, mmap.PROT_READ), "mprotect")


def replace_by_copy(address: int, num_bytes: int) -> None:
    """Moves a mapping's bytes to memory of their own, at the same address.

    Readers see the same bytes at every moment: the pages change hands in one system call. Raises
    KernelError when there is no memory for it.
    """
    prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    copy = _libc().mmap(None, num_bytes, prot, flags, -1, 0)
    if copy == ctypes.c_void_p(-1).value:
        raise KernelError(f"no memory for a copy of {num_bytes:,} bytes")
    ask_for_huge_pages(copy, num_bytes)
    ctypes.memmove(copy, address, num_bytes)
    moved = _libc().mremap(
        copy, num_bytes, num_bytes, _MREMAP_MAYMOVE | _MREMAP_FIXED, ctypes.c_void_p(address)
    )
    if moved != address:
        raise KernelError(f"mremap: {os.strerror(ctypes.get_errno())}")


def _read_step(step: tuple[int, int], *, is_huge: bool) -> None:
    address, num_bytes = step
    if not is_huge:
        # First one large read, since faults ask for 128 KiB at a time. Those for huge pages read
        # megabytes, and this call would bring small ones.
        _libc().madvise(address, num_bytes, mmap.MADV_WILLNEED)
    if _libc().madvise(address, num_bytes, _MADV_POPULATE_READ) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EINVAL:  # an older kernel
        for page in range(address, address + num_bytes, mmap.PAGESIZE):
            ctypes.c_ubyte.from_address(page).value  # noqa: B018 -- the access is the point
    else:
        why = "a page cannot be read" if code == errno.EFAULT else os.strerror(code)
        raise OSError(code, why)


def _kernel() -> tuple[int, ...]:
    """The version of Linux: (6, 18)."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _check(result: int, name: str) -> None:
    if result != 0:
        raise KernelError(f"{name}: {os.strerror(ctypes.get_errno())}")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, pointer, integer = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    libc.madvise.argtypes = [pointer, size, integer]
    libc.mprotect.argtypes = [pointer, size, integer]
    libc.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_long]
    libc.mmap.restype = pointer
    libc.mremap.argtypes = [pointer, size, size, integer, pointer]
    libc.mremap.restype = pointer
    return libc
