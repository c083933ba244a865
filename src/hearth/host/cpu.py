"""How many threads are worth starting: physical cores that this process may use.

Two hardware threads of one core share its vector units, so a second one brings nothing to kernels
that keep them busy. `root` lets tests lay out a file system of their own.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hearth.host.files import cpu_list, read_text, whole_number


@dataclass(frozen=True, slots=True)
class UsableCores:
    """The number of cores to use, at least 1, and how it came about.

    `cpus`: one logical CPU of each physical core in the affinity mask, whatever the quota;
    `allowed`: all of the mask.
    """

    count: int
    reason: str
    cpus: tuple[int, ...]
    allowed: frozenset[int] = frozenset()


def allowed_cpus(affinity: Collection[int] | None = None) -> frozenset[int]:
    """The logical CPUs of an affinity mask; None: of the calling thread's."""
    return frozenset(os.sched_getaffinity(0) if affinity is None else affinity)


def read_usable_cores(
    root: Path = Path("/"), affinity: Collection[int] | None = None
) -> UsableCores:
    """Physical cores within the affinity mask (default: this process's) and the cgroup's quota."""
    allowed = sorted(allowed_cpus(affinity))
    cores: dict[str, int] = {}
    for cpu in allowed:
        cores.setdefault(read_siblings(root, cpu), cpu)
    cpus, mask = tuple(cores.values()), frozenset(allowed)
    reason = f"{len(cores)} physical core{'s' if len(cores) != 1 else ''} in the affinity mask"
    if len(cores) < len(allowed):
        reason += f" ({len(allowed)} hardware threads)"
    quota = read_quota(root)
    if quota is not None and quota < len(cores):
        count = max(1, int(quota))
        return UsableCores(count, f"{reason}; the cgroup's CPU quota is {quota:g}", cpus, mask)
    return UsableCores(max(1, len(cores)), reason, cpus, mask)


def read_siblings(root: Path, cpu: int) -> str:
    """A name of the physical core that a logical CPU belongs to."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        text = read_text(topology / name)
        if text:
            return text
    return f"cpu{cpu}"  # unknown: every logical CPU counts as a core


def hardware_threads(root: Path, cpu: int) -> tuple[int, ...]:
    """All logical CPUs of the physical core that one belongs to, those that are forbidden too."""
    return cpu_list(read_siblings(root, cpu)) or (cpu,)


def format_cpus(cpus: Collection[int]) -> str:
    """A list like 0-3,8, as Linux writes it."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def read_quota(root: Path) -> float | None:
    """The tightest CPU quota of this process's cgroups, in cores; None without a limit."""
    quotas: list[float] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part]
        names = controllers.split(",")
        for length in range(len(parts), -1, -1):
            if hierarchy == "0" and not controllers:
                group = root.joinpath("sys/fs/cgroup", *parts[:length])
                limit = read_text(group / "cpu.max").split()
            elif "cpu" in names:
                group = root.joinpath("sys/fs/cgroup/cpu", *parts[:length])
                limit = [
                    read_text(group / "cpu.cfs_quota_us"),
                    read_text(group / "cpu.cfs_period_us"),
                ]
            else:
                break
            if len(limit) == 2:
                quota, period = (whole_number(part) for part in limit)
                if quota is not None and quota >= 0 and period:  # -1 and "max": no limit
                    quotas.append(quota / period)
    return min(quotas, default=None)
