"""The processor: kind, cores, instruction sets, caches, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from hearth.host.cpu import format_cpus, read_quota, read_siblings, read_usable_cores
from hearth.host.facts.cpu_names import arm_core, arm_vendor, relevant_features
from hearth.host.facts.fact import Fact, Tree, first_known, unknown
from hearth.host.files import cpu_list, read_text, scaled, whole_number

ALL_ALIKE = "all alike"
PERFORMANCE, EFFICIENCY = "performance", "efficiency"
CAPACITY = "capacity "  # and the kernel's number: the fastest cores of a machine have 1024
_CPUS = "sys/devices/system/cpu"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class CoreKind:
    """Cores of one kind; a processor may have performance and efficiency cores."""

    name: str
    cpus: str  # a list like 0-7


@dataclass(frozen=True, slots=True)
class CpuCache:
    """Caches of one level and kind; `size_bytes` of each of `count`."""

    level: int
    kind: str  # Data, Instruction, Unified
    size_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """What computes. `quota_cores` None: no cgroup limits it."""

    architecture: Fact[str]
    model: Fact[str]
    vendor: Fact[str]
    sockets: Fact[int]
    physical_cores: Fact[int]
    logical_cpus: Fact[int]
    threads_per_core: Fact[int]
    core_kinds: Fact[tuple[CoreKind, ...]]
    isa: Fact[tuple[str, ...]]
    caches: Fact[tuple[CpuCache, ...]]
    governor: Fact[str]
    quota_cores: Fact[float]
    affinity: Fact[str]  # a list like 0-7
    usable_cores: Fact[int]


def read_cpu(
    root: Path = Path("/"),
    affinity: Collection[int] | None = None,
    machine: str | None = None,
) -> CpuFacts:
    """Reads the processor. `affinity`, `machine` (as uname has it): None asks the system."""
    tree = Tree(root)
    info = _CpuInfo(tree.text("proc/cpuinfo"))
    online = _online(tree, info)
    siblings = {cpu: read_siblings(root, cpu) for cpu in online.value or ()}
    cores = _core_count(siblings, tree)
    allowed = _affinity(affinity)
    usable = read_usable_cores(root, allowed.value or online.value or (0,))
    quota = read_quota(root)
    return CpuFacts(
        architecture=Fact(machine or platform.machine(), "uname"),
        model=_model(tree, info),
        vendor=info.first("vendor_id", "vendor", "CPU implementer").then(arm_vendor),
        sockets=_sockets(tree, online),
        physical_cores=cores,
        logical_cpus=online.then(len),
        threads_per_core=_threads_per_core(siblings, cores),
        core_kinds=_core_kinds(tree, info, online),
        isa=info.first("flags", "Features", "isa", "cpu").then(relevant_features),
        caches=_caches(tree, online),
        governor=_governor(tree, online),
        quota_cores=Fact(quota, "cpu.max, cpu.cfs_quota_us of this process's cgroups", "no limit")
        if quota is None
        else Fact(quota, "cpu.max, cpu.cfs_quota_us of this process's cgroups"),
        affinity=allowed.then(format_cpus),
        usable_cores=Fact(usable.count, usable.reason),
    )


def read_cpu_model(root: Path = Path("/")) -> str | None:
    """The processor's name alone, without the rest of its facts."""
    tree = Tree(root)
    return _model(tree, _CpuInfo(tree.text("proc/cpuinfo"))).value


def read_core_kinds(root: Path, cpus: Collection[int]) -> tuple[CoreKind, ...]:
    """The kinds of cores of a host, alone; `cpus`: the logical CPUs to tell apart."""
    tree = Tree(root)
    info = _CpuInfo(tree.text("proc/cpuinfo"))
    return _core_kinds(tree, info, Fact(tuple(sorted(cpus)), "asked for")).value or ()


class _CpuInfo:
    """The blocks of /proc/cpuinfo, one a logical CPU; some kernels add a block of the machine."""

    def __init__(self, text: Fact[str]) -> None:
        self._source = text
        self.blocks: list[dict[str, str]] = [{}]
        for line in (text.value or "").splitlines():
            name, colon, value = line.partition(":")
            if not colon:
                self.blocks.append({})
            else:
                self.blocks[-1].setdefault(name.strip(), value.strip())
        self.blocks = [block for block in self.blocks if block]

    def first(self, *names: str) -> Fact[str]:
        """The first value under one of the names, whichever block has it."""
        for name in names:
            for block in self.blocks:
                if block.get(name):
                    return Fact(block[name], f"{name} in /proc/cpuinfo")
        why = self._source.why or f"no {' or '.join(names)} there"
        return unknown("/proc/cpuinfo", why)

    def by_cpu(self, name: str) -> dict[int, str]:
        """A value of each logical CPU that has it."""
        found: dict[int, str] = {}
        for block in self.blocks:
            number = whole_number(block.get("processor", ""))
            if number is not None and name in block:
                found[number] = block[name]
        return found

    def cpus(self) -> tuple[int, ...]:
        """Numbers of the logical CPUs."""
        return tuple(self.by_cpu("processor"))


def _online(tree: Tree, info: _CpuInfo) -> Fact[tuple[int, ...]]:
    listed = tree.text(f"{_CPUS}/online").then(lambda text: cpu_list(text) or None, "no CPU list")
    counted = Fact(info.cpus() or None, "/proc/cpuinfo", listed.why)
    return first_known(listed, counted)


def _affinity(given: Collection[int] | None) -> Fact[tuple[int, ...]]:
    if given is None:
        given = os.sched_getaffinity(0)
    return Fact(tuple(sorted(given)), "sched_getaffinity")


def _model(tree: Tree, info: _CpuInfo) -> Fact[str]:
    """ARM boards have no model name: the cores' names stand for it, or the board's."""
    named = info.first("model name", "Model Name", "cpu model", "uarch")
    power = info.first("cpu")
    if named.is_known or power.is_known:
        return first_known(named, power)
    makers, parts = info.by_cpu("CPU implementer"), info.by_cpu("CPU part")
    cores = dict.fromkeys(arm_core(makers.get(cpu, ""), part) for cpu, part in parts.items())
    if cores:
        return Fact(" + ".join(cores), "CPU part in /proc/cpuinfo")
    board = tree.text("proc/device-tree/model").then(lambda text: text.strip("\0") or None)
    return first_known(named, board)


def _sockets(tree: Tree, online: Fact[tuple[int, ...]]) -> Fact[int]:
    packages = {
        text
        for cpu in online.value or ()
        if (text := read_text(tree.root / f"{_CPUS}/cpu{cpu}/topology/physical_package_id"))
    }
    source = f"/{_CPUS}/cpu*/topology/physical_package_id"
    # ARM boards say -1: the firmware does not tell.
    packages.discard("-1")
    return Fact(len(packages), source) if packages else unknown(source, "not there")


def _core_count(siblings: dict[int, str], tree: Tree) -> Fact[int]:
    source = f"/{_CPUS}/cpu*/topology"
    if not siblings:
        return unknown(source, "no CPU list")
    if not tree.has(f"{_CPUS}/cpu{min(siblings)}/topology"):
        return unknown(source, "no such file")
    return Fact(len(set(siblings.values())), source)


def _threads_per_core(siblings: dict[int, str], cores: Fact[int]) -> Fact[int]:
    """The most hardware threads of a core; a hybrid processor has cores with one and with two."""
    counts: dict[str, int] = {}
    for name in siblings.values():
        counts[name] = counts.get(name, 0) + 1
    return cores.then(lambda _: max(counts.values(), default=None))


def _core_kinds(
    tree: Tree, info: _CpuInfo, online: Fact[tuple[int, ...]]
) -> Fact[tuple[CoreKind, ...]]:
    """From perf's devices (hybrid x86), the capacities or the part numbers (ARM)."""
    named = {name: tree.text(f"sys/devices/cpu_{name}/cpus") for name in ("core", "atom")}
    if named["core"].value and named["atom"].value:
        kinds: tuple[CoreKind, ...] = (
            CoreKind(PERFORMANCE, named["core"].value),
            CoreKind(EFFICIENCY, named["atom"].value),
        )
        return Fact(kinds, "/sys/devices/cpu_core/cpus, /sys/devices/cpu_atom/cpus")
    cpus = online.value or ()
    capacities = {cpu: read_text(tree.root / f"{_CPUS}/cpu{cpu}/cpu_capacity") for cpu in cpus}
    if any(capacities.values()):
        kinds = _grouped({c: f"{CAPACITY}{text}" for c, text in capacities.items() if text})
        return Fact(kinds, f"/{_CPUS}/cpu*/cpu_capacity")
    makers, parts = info.by_cpu("CPU implementer"), info.by_cpu("CPU part")
    if parts:
        kinds = _grouped({c: arm_core(makers.get(c, ""), part) for c, part in parts.items()})
        return Fact(kinds, "CPU part in /proc/cpuinfo")
    if not cpus:
        return unknown(f"/{_CPUS}/online", online.why)
    one = (CoreKind(ALL_ALIKE, format_cpus(cpus)),)
    return Fact(one, "no hybrid device and no capacities below /sys")


def _grouped(names: dict[int, str]) -> tuple[CoreKind, ...]:
    groups: dict[str, list[int]] = {}
    for cpu, name in names.items():
        groups.setdefault(name, []).append(cpu)
    if len(groups) == 1:
        return (CoreKind(ALL_ALIKE, format_cpus(names)),)
    return tuple(CoreKind(name, format_cpus(cpus)) for name, cpus in groups.items())


def _caches(tree: Tree, online: Fact[tuple[int, ...]]) -> Fact[tuple[CpuCache, ...]]:
    source = f"/{_CPUS}/cpu*/cache"
    seen: dict[tuple[int, str, int], set[str]] = {}
    for cpu in online.value or ():
        base = f"{_CPUS}/cpu{cpu}/cache"
        for index in tree.names(base):
            level = whole_number(read_text(tree.root / f"{base}/{index}/level"))
            size = _size(read_text(tree.root / f"{base}/{index}/size"))
            if level is None or size is None:
                continue
            kind = read_text(tree.root / f"{base}/{index}/type") or "Unified"
            shared = read_text(tree.root / f"{base}/{index}/shared_cpu_list") or f"cpu{cpu}"
            seen.setdefault((level, kind, size), set()).add(shared)
    if not seen:
        return unknown(source, "not there")
    return Fact(tuple(CpuCache(*key, len(shared)) for key, shared in sorted(seen.items())), source)


def _size(text: str) -> int | None:
    """Bytes of a size like 1024K."""
    number = whole_number(text[:-1]) if text[-1:] in _UNITS else whole_number(text)
    return scaled(number, _UNITS.get(text[-1:], 1))


def _governor(tree: Tree, online: Fact[tuple[int, ...]]) -> Fact[str]:
    """The governor of the CPUs; several where they differ."""
    found = [tree.text(f"{_CPUS}/cpu{cpu}/cpufreq/scaling_governor") for cpu in online.value or ()]
    return _joined(found, f"/{_CPUS}/cpu*/cpufreq/scaling_governor")


def _joined(facts: Iterable[Fact[str]], source: str) -> Fact[str]:
    values = sorted({fact.value for fact in facts if fact.value is not None})
    return Fact(", ".join(values), source) if values else unknown(source, "no such file")
