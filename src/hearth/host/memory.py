"""How much memory this process may still take, and which limit says so.

Facts are read when asked, never at import. `root` lets tests lay out a file system of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import CapacityError
from hearth.core.units import KIB, format_bytes
from hearth.host.files import read_text, scaled, whole_number

# Kernels write a huge number of this size or more where a cgroup v1 has no limit.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryFact:
    """One bound on what can still be taken, and where it was read."""

    available_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class CgroupLimit:
    """A memory limit of one of this process's cgroups, and what of it is left."""

    limit_bytes: int
    available_bytes: int
    version: str  # cgroup v1, cgroup v2


@dataclass(frozen=True, slots=True)
class HostMemory:
    """All bounds that were found; the tightest counts."""

    facts: tuple[MemoryFact, ...]

    @property
    def tightest(self) -> MemoryFact:
        """The bound that counts."""
        return min(self.facts, key=lambda fact: fact.available_bytes)

    @property
    def available_bytes(self) -> int:
        """What can still be taken."""
        return self.tightest.available_bytes

    def describe(self) -> str:
        """`19.5 GiB available (MemAvailable)`."""
        return f"{format_bytes(self.available_bytes)} available ({self.tightest.source})"


def read_memory(root: Path = Path("/")) -> HostMemory:
    """Reads /proc/meminfo and the limits of this process's cgroups, v1 and v2.

    Raises CapacityError when there is nothing to read.
    """
    facts: list[MemoryFact | None] = [_read_meminfo(root)]
    facts += [
        MemoryFact(c.available_bytes, f"{c.version} limit of {format_bytes(c.limit_bytes)}")
        for c in read_cgroup_limits(root)
    ]
    found = tuple(fact for fact in facts if fact is not None)
    if not found:
        raise CapacityError(
            "cannot tell how much memory is free: neither /proc/meminfo nor a cgroup limit can "
            "be read",
            hint="mount /proc",
        )
    return HostMemory(found)


def read_meminfo_bytes(root: Path = Path("/")) -> dict[str, int]:
    """The sizes of /proc/meminfo by name, in bytes; counts of huge pages are left out."""
    values: dict[str, int] = {}
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        is_size = len(number) == 2 and number[1] == "kB"
        size = scaled(whole_number(number[0]), KIB) if is_size else None
        if size is not None:
            values[name] = size
    return values


def _read_meminfo(root: Path) -> MemoryFact | None:
    """MemAvailable: what can be had without swapping, page cache given back included."""
    values = read_meminfo_bytes(root)
    if "MemAvailable" in values:
        return MemoryFact(values["MemAvailable"], "MemAvailable in /proc/meminfo")
    if "MemFree" in values:  # kernels before 3.14
        return MemoryFact(values["MemFree"], "MemFree in /proc/meminfo")
    return None


def read_cgroup_limits(root: Path = Path("/")) -> list[CgroupLimit]:
    """The limits of each memory cgroup from the process's own up to the root."""
    facts: list[CgroupLimit] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            version = "cgroup v2"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            version = "cgroup v1"
        else:
            continue
        facts += _limits_upwards(base, path, names, version)
    return facts


def _limits_upwards(
    base: Path, path: str, names: tuple[str, str], version: str
) -> list[CgroupLimit]:
    """A limit may be set on any ancestor; inside a container the own path may not be visible."""
    facts: list[CgroupLimit] = []
    parts = [part for part in path.split("/") if part]
    for length in range(len(parts), -1, -1):
        group = base.joinpath(*parts[:length])
        limit, usage = (whole_number(read_text(group / name)) for name in names)
        if limit is None or usage is None or not 0 <= limit < UNLIMITED_BYTES:
            continue
        used = max(0, usage - _reclaimable_bytes(group))
        facts.append(CgroupLimit(limit, max(0, limit - used), version))
    return facts


def _reclaimable_bytes(group: Path) -> int:
    """Page cache that the kernel gives back before it enforces the limit."""
    values: dict[str, str] = {}
    for line in read_text(group / "memory.stat").splitlines():
        name, _, values[name] = line.partition(" ")
    total = 0
    for name in ("inactive_file", "active_file"):  # MemAvailable counts both as well
        total += whole_number(values.get(f"total_{name}", values.get(name, "0"))) or 0
    return total
