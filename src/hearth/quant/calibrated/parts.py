"""How work that goes column by column uses the processor: rows in parts, small steps on one thread.

A column's steps are far too short to be shared: two threads that wait for each other at every one
took 26 times one thread's processor time on a machine where others were at work too. Products with
all other columns, one for every 128, keep all threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

_MOST_ROWS = 8192  # at a time: a column of them is 32 KiB, near the processor's first cache


def over_rows(count: int, work: Callable[[slice], Result]) -> list[Result]:
    """`work` of all rows, in parts of about the same size."""
    parts = max(1, -(-count // _MOST_ROWS))
    step = max(1, -(-count // parts))
    return [work(slice(first, min(first + step, count))) for first in range(0, count, step)]


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch uses the thread that is there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
