"""How many threads compute, and on which logical CPUs.

Bound, a thread has a core of its own: Linux does not leave two of them on one core while another is
free, and a thread whose core another process takes is helped by the others (csrc/team.h). That
needs as many threads as there are cores: fewer are moved to free cores by Linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.errors import ConfigError
from hearth.host.cpu import UsableCores, read_usable_cores
from hearth.host.numa import NodeChoice, choose_node

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
_MOST_CPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class Placement:
    """`cpus`: the logical CPU of each thread; empty: Linux places them.

    `is_asked`: they come from the user. `memory`: the NUMA node, and why.
    """

    num_threads: int
    threads_reason: str
    cpus: tuple[int, ...]
    bind_reason: str
    is_asked: bool = False
    memory: NodeChoice | None = None


def place_threads(
    bind: str,
    threads: int | None,
    numa: str = "auto",
    root: Path = Path("/"),
    affinity: Collection[int] | None = None,
) -> Placement:
    """Resolves `--cpu-bind` ("auto", "none" or a list of CPUs), `--threads` and `--numa`.

    `root` lets tests lay out a file system of their own; `affinity`: the CPUs that this process may
    use. Raises ConfigError for a list or a node that is none, or does not go with the rest.
    """
    allowed = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    if bind not in {"auto", "none"}:
        placement = _place_on(parse_cpus(bind), threads, allowed)
        return replace(placement, memory=choose_node(numa, allowed, placement.cpus, threads, root))
    memory = choose_node(numa, allowed, (), threads, root)
    cores = read_usable_cores(root, memory.cpus)
    count, why = (cores.count, cores.reason) if threads is None else (threads, "--threads")
    if memory.node is not None:
        why += f" on NUMA node {memory.node}" if threads is None else ""
    if bind == "none":
        reason = "--cpu-bind none: Linux places the threads"
        return Placement(count, why, (), reason, memory=memory)
    return replace(_place(cores, count, why), memory=memory)


def _place(cores: UsableCores, count: int, why: str) -> Placement:
    num_cores = len(cores.cpus)
    if count < num_cores:
        reason = f"{count} of {num_cores} cores: Linux moves the threads to free ones"
    elif count > num_cores:
        reason = f"there are {count} threads for {num_cores} cores"
    elif count == 1:
        reason = "one thread"
    else:
        return Placement(count, why, cores.cpus, "each thread has a core of its own")
    return Placement(count, why, (), reason)


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


def format_cpus(cpus: Collection[int]) -> str:
    """A list like 0-3,8, as Linux writes it."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)
