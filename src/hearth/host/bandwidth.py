"""How fast this machine's memory is read: by one thread to all, and by each NUMA node's cores.

Threads of their own, each bound to a core, look through memory that they have written themselves
for a byte that is not there (memchr(3), which libc does with vectors). Nothing else is touched: the
affinity and the memory policy are those of these threads, which end.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hearth.core.errors import ConfigError
from hearth.core.units import MIB, ceil_div
from hearth.host.cpu import allowed_cpus, read_usable_cores
from hearth.host.facts.numa import NumaNode, read_numa
from hearth.host.files import cpu_list
from hearth.host.memory_policy import prefer_node
from hearth.host.speed import Samples, samples_of

WINDOW_S = 0.1  # of reading, for one sample
LEAST_BYTES = 64 * MIB  # of a thread, so that its own caches do not answer
CACHES = 3  # all threads together read so many times the last cache
MEMORY_SHARE = 8  # of what is free one part in so many is used at most
_PIECE_BYTES = 8 * MIB
_EVERY_COUNT = 8  # threads; beyond, twice as many each time
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Threads on these logical CPUs. `cpu_node`, `memory_node` None: whatever node that is."""

    cpus: tuple[int, ...]
    cpu_node: int | None = None
    memory_node: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """Bytes a second that so many threads read together; nodes None: wherever they are."""

    num_threads: int
    cpu_node: int | None
    memory_node: int | None
    bytes_s: Samples


def plan_reads(
    cpus: Collection[int] = (), root: Path = Path("/"), affinity: Collection[int] | None = None
) -> tuple[ReadPlan, ...]:
    """1 to all threads of `cpus` (none: a core each of those that may be used), and each node.

    A host of several nodes has each node's cores read the memory there and that of the farthest.
    """
    allowed = allowed_cpus(affinity)
    cores = tuple(cpus) or read_usable_cores(root, allowed).cpus
    plans = [ReadPlan(cores[:count]) for count in _counts(len(cores))]
    nodes = [node for node in read_numa(root).nodes.value or () if _cpus(node) & allowed]
    for index, node in enumerate(nodes if len(nodes) > 1 else ()):
        there = read_usable_cores(root, _cpus(node) & allowed).cpus
        plans += (
            ReadPlan(there, node.number, memory)
            for memory in (node.number, _farthest(index, nodes).number)
        )
    return tuple(plans)


def _counts(num_cores: int) -> list[int]:
    counts = list(range(1, min(num_cores, _EVERY_COUNT) + 1))
    while counts[-1] * 2 < num_cores:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == num_cores else [*counts, num_cores]


def _farthest(index: int, nodes: Sequence[NumaNode]) -> NumaNode:
    """By the distances that the kernel tells, in the order of nodes; else the next one."""
    others = [node for i, node in enumerate(nodes) if i != index]
    distances = nodes[index].distances.value or ()
    if len(distances) != len(nodes):
        return others[index % len(others)]
    return max(others, key=lambda node: distances[nodes.index(node)])


def _cpus(node: NumaNode) -> frozenset[int]:
    return frozenset(cpu_list(node.cpus) or ())


Read: TypeAlias = Callable[[ReadPlan, int], float]


@dataclass(slots=True)
class MemoryReads:
    """Takes samples of all plans; `cache_bytes`: of the last level together, `free_bytes`: left.

    `notes`: what cannot be measured, and why; it is not tried again.
    """

    plans: tuple[ReadPlan, ...]
    cache_bytes: int
    free_bytes: int
    notes: list[str] = field(default_factory=list)
    _found: dict[ReadPlan, list[float]] = field(default_factory=dict)

    def sample(self, read: Read | None = None) -> None:
        """One more of each; some tenth of a second for each plan."""
        for plan in self.plans:
            try:
                rate = (read or read_bytes_s)(plan, self._thread_bytes(plan))
            except (OSError, ConfigError) as error:
                self.plans = tuple(other for other in self.plans if other != plan)
                self.notes.append(f"memory read by {_named(plan)} was not measured: {error}")
                continue
            self._found.setdefault(plan, []).append(rate)

    def results(self) -> tuple[MemoryRead, ...]:
        """Of all plans that were sampled."""
        return tuple(
            MemoryRead(len(plan.cpus), plan.cpu_node, plan.memory_node, samples_of(rates))
            for plan, rates in self._found.items()
        )

    def _thread_bytes(self, plan: ReadPlan) -> int:
        threads = len(plan.cpus)
        wanted = max(LEAST_BYTES, ceil_div(CACHES * self.cache_bytes, threads))
        most = max(_PIECE_BYTES, self.free_bytes // MEMORY_SHARE // threads)
        return min(wanted, most) // mmap.PAGESIZE * mmap.PAGESIZE


def _named(plan: ReadPlan) -> str:
    where = "" if plan.cpu_node is None else f" of node {plan.cpu_node} from {plan.memory_node}"
    return f"{len(plan.cpus)} thread{'s' * (len(plan.cpus) > 1)}{where}"


def read_bytes_s(plan: ReadPlan, thread_bytes: int) -> float:
    """Bytes a second of all threads together. Raises OSError, ConfigError (a node's memory)."""
    barrier = threading.Barrier(len(plan.cpus), timeout=_PATIENCE_S)
    rates: list[float] = []
    errors: list[OSError | ConfigError] = []

    def work(cpu: int) -> None:
        try:
            rates.append(_read_on(cpu, plan.memory_node, thread_bytes, barrier))
        except threading.BrokenBarrierError:
            return  # another one's error is the cause
        except (OSError, ConfigError) as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in plan.cpus]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:  # no more threads
        barrier.abort()
        errors.append(OSError(str(error)))
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if errors or len(rates) < len(threads):
        raise errors[0] if errors else OSError("a thread did not answer in time")
    return sum(rates)


def _read_on(cpu: int, node: int | None, num_bytes: int, barrier: threading.Barrier) -> float:
    """Bytes a second of the calling thread, which is bound for good."""
    os.sched_setaffinity(0, {cpu})
    if node is not None:
        prefer_node(node)
    with mmap.mmap(-1, num_bytes) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without
                memory.madvise(mmap.MADV_HUGEPAGE)
        view = (ctypes.c_char * num_bytes).from_buffer(memory)
        try:
            begin = ctypes.addressof(view)
            ctypes.memset(begin, 0, num_bytes)  # what is only read would be one page of zeros
            barrier.wait()
            return _look_through(begin, num_bytes)
        finally:
            del view  # memory cannot be closed before


def _look_through(begin: int, num_bytes: int) -> float:
    libc = ctypes.CDLL(None)  # calls leave Python's lock alone
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    done, start = 0, time.perf_counter()
    while True:
        offset = done % num_bytes
        piece = min(_PIECE_BYTES, num_bytes - offset)
        libc.memchr(begin + offset, 1, piece)
        done += piece
        seconds = time.perf_counter() - start
        if seconds >= WINDOW_S:
            return done / seconds
