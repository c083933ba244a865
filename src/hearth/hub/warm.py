"""The page cache, filled ahead of who reads.

`posix_fadvise(WILLNEED)` starts reading and returns; but Linux cuts each call to the device's
readahead window or its largest request, whichever is more (mm/readahead.c,
force_page_cache_ra), so that one call for a whole file warms its first megabyte at most: files are
asked for in small steps. A call waits where the device's queue is full, so this belongs into a
thread of its own; it reads nothing into the process and may end at any time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from hearth.hub.selection import needed_weights

# The default window (read_ahead_kb); where a device's is smaller, its request size is not.
STEP_BYTES = 128 << 10


def warm(paths: Sequence[Path], stopped: threading.Event | None = None) -> int:
    """Asks the kernel to read the files, in order; the bytes asked for.

    A file that is gone or that no advice can be given on is left out.
    """
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                num_bytes = os.fstat(fd).st_size
                for offset in range(0, num_bytes, STEP_BYTES):
                    if stopped is not None and stopped.is_set():
                        return total
                    os.posix_fadvise(fd, offset, STEP_BYTES, os.POSIX_FADV_WILLNEED)
                total += num_bytes
            finally:
                os.close(fd)
    return total


def start_warming(model_dir: Path) -> threading.Thread:
    """Warms a model's weights in the background; the process may end before it.

    Raises OSError where the directory cannot be read.
    """
    names = needed_weights(sorted(path.name for path in model_dir.iterdir()))
    paths = tuple(model_dir / name for name in names)
    thread = threading.Thread(target=warm, args=(paths,), name="hearth-warm", daemon=True)
    thread.start()
    return thread
