"""The page cache, filled ahead of who reads.

`posix_fadvise(WILLNEED)` starts reading and returns; but Linux cuts each call to the device's
readahead window or its largest request, whichever is more (mm/readahead.c,
force_page_cache_ra), so that one call for a whole file warms its first megabyte at most: ranges are
asked for in small steps. A call waits where the device's queue is full, without the GIL; it reads
nothing into the process.
"""

from __future__ import annotations

import os

# The default window (read_ahead_kb); where a device's is smaller, its request size is not.
STEP_BYTES = 128 << 10


def warm_range(fd: int, begin: int, num_bytes: int) -> None:
    """Asks the kernel to read a range of a file. Raises OSError where none can be asked for."""
    for offset in range(begin, begin + num_bytes, STEP_BYTES):
        step = min(STEP_BYTES, begin + num_bytes - offset)
        os.posix_fadvise(fd, offset, step, os.POSIX_FADV_WILLNEED)
