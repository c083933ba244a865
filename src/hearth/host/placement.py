"""How many threads compute, and on which logical CPUs.

Bound, a thread has a core of its own: Linux does not leave two of them on one core while another is
free, and a thread whose core another process takes is helped by the others (csrc/team.h). Cores
that other servers have taken (core_lease.py) come last, the slow ones of a hybrid processor behind
the fast ones.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.errors import ConfigError
from hearth.host.core_lease import OtherServers
from hearth.host.cpu import (
    UsableCores,
    allowed_cpus,
    format_cpus,
    hardware_threads,
    read_usable_cores,
)
from hearth.host.facts.platform import read_container
from hearth.host.fast_cores import read_fast_cores
from hearth.host.files import read_text
from hearth.host.numa import NodeChoice, choose_node

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
_MOST_CPUS = 1 << 16
NOBODY = OtherServers()


@dataclass(frozen=True, slots=True)
class Placement:
    """`cpus`: the logical CPU of each thread; empty: Linux places them.

    `is_asked`: they come from the user. `memory`: the NUMA node, and why. `process_cpus`: where the
    whole process stays; empty: it is not confined. `taken`: CPUs that other servers should leave
    alone. `core_kind`: of a hybrid processor, where all threads are on one kind of cores.
    """

    num_threads: int
    threads_reason: str
    cpus: tuple[int, ...]
    bind_reason: str
    is_asked: bool = False
    memory: NodeChoice | None = None
    process_cpus: frozenset[int] = frozenset()
    taken: tuple[int, ...] = ()
    core_kind: str = ""
    warnings: tuple[str, ...] = ()


def place_threads(
    bind: str,
    threads: int | None,
    numa: str = "auto",
    root: Path = Path("/"),
    affinity: Collection[int] | None = None,
    others: OtherServers = NOBODY,
) -> Placement:
    """Resolves `--cpu-bind` ("auto", "none" or a list of CPUs), `--threads` and `--numa`.

    `root` lets tests lay out a file system of their own; `affinity`: the CPUs that this process may
    use; `others`: those that servers beside this one have taken. Raises ConfigError for a list or a
    node that is none, or does not go with the rest.
    """
    allowed = allowed_cpus(affinity)
    if bind not in {"auto", "none"}:
        placement = _place_on(parse_cpus(bind), threads, allowed)
        memory = choose_node(numa, allowed, placement.cpus, threads, root)
        warnings = _shared(root, placement.cpus, others)
        return replace(placement, memory=memory, taken=placement.cpus, warnings=warnings)
    memory = choose_node(numa, allowed, (), threads, root, others.pids)
    cores = _read_cores(root, memory.cpus, others)
    counted = _count(cores, threads, bind, memory.node)
    if bind == "auto":
        return replace(_place(root, cores, counted, others), memory=memory)
    count, reason = counted.num_threads, "--cpu-bind none: Linux places the threads"
    kind = cores.kind_of(count)
    return Placement(count, counted.reason, (), reason, memory=memory, core_kind=kind)


@dataclass(frozen=True, slots=True)
class _Cores:
    """`ranked`: a logical CPU of each core, the best first: free ones, of these the fast ones.

    `num_fast` of all, `free_fast` of those that are free, `num_free` of all kinds.
    """

    usable: UsableCores
    ranked: tuple[int, ...]
    fast: frozenset[int]
    num_free: int
    kind: str
    slow: str

    @property
    def num_fast(self) -> int:
        return len(self.fast)

    @property
    def free(self) -> tuple[int, ...]:
        return self.ranked[: self.num_free]

    def kind_of(self, num_threads: int) -> str:
        """What the cores of so many threads are called, if they are all fast ones."""
        return self.kind if self.fast.issuperset(self.ranked[:num_threads]) else ""


def _read_cores(root: Path, cpus: Collection[int], others: OtherServers) -> _Cores:
    usable = read_usable_cores(root, cpus)
    fast = read_fast_cores(root, usable.cpus)
    holders = {cpu: len(_holders(root, cpu, others)) for cpu in usable.cpus}
    ranked = sorted(usable.cpus, key=lambda cpu: (holders[cpu], cpu not in fast.cpus, cpu))
    num_free = sum(count == 0 for count in holders.values())
    return _Cores(usable, tuple(ranked), fast.cpus, num_free, fast.kind, fast.slow)


def _holders(root: Path, cpu: int, others: OtherServers) -> set[int]:
    """Processes that have taken the core of a logical CPU."""
    if not others.pids:
        return set()
    return {pid for thread in hardware_threads(root, cpu) for pid in others.pids.get(thread, ())}


@dataclass(frozen=True, slots=True)
class _Count:
    """How many threads, and why. `is_quota`: a quota leaves it to Linux which cores they use."""

    num_threads: int
    reason: str
    is_quota: bool = False


def _count(cores: _Cores, threads: int | None, bind: str, node: int | None) -> _Count:
    """As many as were asked for, else one a fast core that is free."""
    is_limited = cores.usable.count < len(cores.usable.cpus)
    if threads is not None:
        return _Count(threads, "--threads", is_limited and threads <= cores.usable.count)
    count, why = cores.usable.count, cores.usable.reason
    if cores.kind and cores.num_fast <= count:
        count = cores.num_fast
        num_slow = len(cores.ranked) - count
        why = f"{count} {cores.kind} core{_s(count)} of {why}; {num_slow} {cores.slow} ones are "
        why += f"left out: --threads {len(cores.ranked)} takes all"
        is_limited = False
    if node is not None:
        why += f" on NUMA node {node}"
    free = [cpu for cpu in cores.free if cpu in cores.fast] or list(cores.free)
    if bind == "auto" and not is_limited and 0 < len(free) < count:
        why = f"{len(free)} of {count} free, other servers have the rest: {why}"
        count = len(free)
    return _Count(count, why, is_limited)


def _place(root: Path, cores: _Cores, counted: _Count, others: OtherServers) -> Placement:
    count, num_cores = counted.num_threads, len(cores.ranked)
    unseen = f" (other servers are not seen: {others.why})" if others.why else ""
    unbound = Placement(
        count, counted.reason, (), "", taken=cores.usable.cpus, core_kind=cores.kind_of(count)
    )
    if count < num_cores and counted.is_quota:
        # Which cores others use is not known behind a quota, and a quota needs no cores of its own.
        reason = f"{count} of {num_cores} cores: Linux moves the threads to free ones"
        return replace(unbound, taken=(), bind_reason=reason)
    if count > num_cores or num_cores == 1:
        one = "one thread" if count == 1 else f"there are {count} threads for {num_cores} core"
        reason = one + _s(num_cores) * (count > 1)
        warnings = _shared(root, cores.usable.cpus, others)
        return replace(unbound, bind_reason=reason + unseen, warnings=warnings)
    chosen = tuple(sorted(_chosen(root, cores, count)))
    reason = "each thread has a core of its own"
    if count < num_cores:
        reason = f"{count} of {num_cores} cores, which other servers leave alone"
    warnings = _shared(root, chosen, others)
    if warnings:
        reason = "cores that other servers have as well"
    return replace(
        unbound,
        cpus=chosen,
        bind_reason=reason + unseen,
        process_cpus=_confined(root, cores, chosen),
        taken=chosen,
        warnings=warnings,
    )


def _chosen(root: Path, cores: _Cores, count: int) -> tuple[int, ...]:
    """The first cores; in a container, which does not see the others', some that hang on its name.

    So that not every container of a machine takes the same ones.
    """
    if count > cores.num_free or cores.num_free < len(cores.ranked) or cores.kind:
        return cores.ranked[:count]
    if read_container(root) == "none":
        return cores.ranked[:count]
    name = read_text(root / "etc/hostname").encode()
    start = zlib.crc32(name) % (len(cores.ranked) // count) * count
    return cores.ranked[start : start + count]


def _confined(root: Path, cores: _Cores, chosen: tuple[int, ...]) -> frozenset[int]:
    """All hardware threads of the cores that may be used; empty: they are all there are."""
    if len(chosen) == len(cores.ranked):
        return frozenset()
    threads = {thread for cpu in chosen for thread in hardware_threads(root, cpu)}
    return frozenset(threads & cores.usable.allowed)


def _shared(root: Path, cpus: Collection[int], others: OtherServers) -> tuple[str, ...]:
    """What is to be said where a core is another server's as well."""
    holders = {cpu: _holders(root, cpu, others) for cpu in cpus}
    shared = [cpu for cpu, pids in holders.items() if pids]
    if not shared:
        return ()
    pids = ", ".join(map(str, sorted(set[int]().union(*holders.values()))))
    warning = (
        f"CPU {format_cpus(shared)}: also taken by the hearth server of process {pids}; both get "
        "slower (--threads, --cpu-bind and --numa divide the cores)"
    )
    return (warning,)


def _s(count: int) -> str:
    return "s" if count != 1 else ""


def _place_on(cpus: tuple[int, ...], threads: int | None, allowed: frozenset[int]) -> Placement:
    hint = f"this process may use {format_cpus(allowed)} (taskset, cpuset or container)"
    forbidden = [cpu for cpu in cpus if cpu not in allowed]
    if forbidden:
        shown = format_cpus(forbidden)
        raise ConfigError(
            f"--cpu-bind asks for CPU {shown}, which this process may not use",
            param="cpu_bind",
            hint=hint,
        )
    if threads is not None and threads != len(cpus):
        raise ConfigError(
            f"--cpu-bind has {len(cpus)} of them, and --threads is {threads}",
            param="cpu_bind",
            hint="leave --threads out: there is a thread for each CPU of the list",
        )
    return Placement(len(cpus), "one for each CPU of --cpu-bind", cpus, "--cpu-bind", True)


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs of a list like 0,2,4-7, in its order. Raises ConfigError."""
    cpus: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        if not first <= last < _MOST_CPUS:
            raise ConfigError(
                f"--cpu-bind is {text!r}: neither auto nor none nor a list of CPUs like 0,2,4-7",
                param="cpu_bind",
            )
        cpus.extend(range(first, last + 1))
    if len(set(cpus)) < len(cpus):
        raise ConfigError(f"--cpu-bind {text} names a CPU twice", param="cpu_bind")
    return tuple(cpus)
