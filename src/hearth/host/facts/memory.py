"""Memory: how much there is and is free, huge pages, and the limits of this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import CapacityError
from hearth.core.units import KIB
from hearth.host.facts.fact import Fact, Tree, unknown
from hearth.host.facts.limits import read_process_limits
from hearth.host.files import scaled, whole_number
from hearth.host.memory import read_cgroup_limits, read_meminfo_bytes, read_memory

_MEMINFO = "/proc/meminfo"
_THP = "sys/kernel/mm/transparent_hugepage"
_POOLS = "sys/kernel/mm/hugepages"


@dataclass(frozen=True, slots=True)
class HugePool:
    """The HugeTLB pool of one page size."""

    page_bytes: int
    num_pages: Fact[int]
    num_free: Fact[int]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """`available_bytes`: what this process may still take, by the tightest bound.

    `cgroup_limit_bytes` None: no cgroup limits it. `memlock_bytes`: the soft limit; -1: none.
    """

    total_bytes: Fact[int]
    available_bytes: Fact[int]
    swap_total_bytes: Fact[int]
    swap_free_bytes: Fact[int]
    cgroup_limit_bytes: Fact[int]
    thp_mode: Fact[str]
    thp_defrag: Fact[str]
    huge_pools: Fact[tuple[HugePool, ...]]
    memlock_bytes: Fact[int]


def read_memory_facts(root: Path = Path("/")) -> MemoryFacts:
    """Reads the memory's sizes and settings."""
    tree = Tree(root)
    sizes = read_meminfo_bytes(root)
    why = tree.text("proc/meminfo").why

    def size(name: str) -> Fact[int]:
        value = sizes.get(name)
        reason = "" if value is not None else why or f"no {name} there"
        return Fact(value, f"{name} in {_MEMINFO}", reason)

    return MemoryFacts(
        total_bytes=size("MemTotal"),
        available_bytes=_available(root),
        swap_total_bytes=size("SwapTotal"),
        swap_free_bytes=size("SwapFree"),
        cgroup_limit_bytes=_cgroup_limit(root),
        thp_mode=tree.chosen(f"{_THP}/enabled"),
        thp_defrag=tree.chosen(f"{_THP}/defrag"),
        huge_pools=_huge_pools(tree),
        memlock_bytes=read_process_limits(tree).memlock_soft_bytes,
    )


def _available(root: Path) -> Fact[int]:
    try:
        tightest = read_memory(root).tightest
    except CapacityError as error:
        return unknown(_MEMINFO, error.message)
    return Fact(tightest.available_bytes, tightest.source)


def _cgroup_limit(root: Path) -> Fact[int]:
    limits = read_cgroup_limits(root)
    if not limits:
        return unknown("memory limits of this process's cgroups", "no limit")
    tightest = min(limits, key=lambda limit: limit.limit_bytes)
    return Fact(tightest.limit_bytes, tightest.version)


def _huge_pools(tree: Tree) -> Fact[tuple[HugePool, ...]]:
    pools: list[HugePool] = []
    for name in tree.names(_POOLS):
        page_bytes = scaled(whole_number(name.removeprefix("hugepages-").removesuffix("kB")), KIB)
        if page_bytes:
            base = f"{_POOLS}/{name}"
            num_pages, num_free = (
                tree.number(f"{base}/{file}") for file in ("nr_hugepages", "free_hugepages")
            )
            pools.append(HugePool(page_bytes, num_pages, num_free))
    if not pools:
        return unknown(f"/{_POOLS}", "no pools there: a kernel or container without")
    return Fact(tuple(pools), f"/{_POOLS}")
