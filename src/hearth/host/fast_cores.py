"""Which cores of a hybrid processor compute: the fast ones, which slow ones would keep waiting.

Threads meet after every operation, and a core that is half as fast holds a tile twice as long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hearth.host.facts.cpu import CAPACITY, EFFICIENCY, PERFORMANCE, CoreKind, read_core_kinds
from hearth.host.files import cpu_list, whole_number

# A core with so large a part of the capacity (cpu_capacity of Linux) of the best one counts as
# fast: processors with one "prime" core beside several large ones have 70 to 90 % in these.
LEAST_CAPACITY = 0.6


@dataclass(frozen=True, slots=True)
class FastCores:
    """`cpus`: those on fast cores; all of them where there is one kind, or none can be told.

    `kind`: what the fast ones are called, `slow`: the others; empty where there is one kind.
    """

    cpus: frozenset[int]
    kind: str = ""
    slow: str = ""


def read_fast_cores(root: Path, cpus: Collection[int]) -> FastCores:
    """Tells logical CPUs that may be used apart. `cpus` without a fast one are all as good."""
    everything = frozenset(cpus)
    kinds = [kind for kind in read_core_kinds(root, cpus) if _cpus(kind) & everything]
    fast = fast_kinds(kinds)
    if not fast or len(fast) == len(kinds):
        return FastCores(everything)
    is_named = any(kind.name == PERFORMANCE for kind in fast)
    return FastCores(
        frozenset().union(*(_cpus(kind) for kind in fast)) & everything,
        PERFORMANCE if is_named else "large",
        EFFICIENCY if is_named else "small",
    )


def fast_kinds(kinds: Sequence[CoreKind]) -> tuple[CoreKind, ...]:
    """The fast ones of a host's kinds; empty: names alone do not say which they are."""
    named = tuple(kind for kind in kinds if kind.name == PERFORMANCE)
    if named:
        return named
    sizes = {kind: _capacity(kind) for kind in kinds}
    best = max(sizes.values(), default=0)
    if best == 0 or 0 in sizes.values():
        return ()
    return tuple(kind for kind, size in sizes.items() if size >= LEAST_CAPACITY * best)


def _capacity(kind: CoreKind) -> int:
    """0: its name is no capacity."""
    if not kind.name.startswith(CAPACITY):
        return 0
    return max(0, whole_number(kind.name.removeprefix(CAPACITY)) or 0)


def _cpus(kind: CoreKind) -> frozenset[int]:
    return frozenset(cpu_list(kind.cpus) or ())
