"""NUMA: which CPUs and which memory lie together, and how far they are from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.core.units import KIB
from hearth.host.facts.fact import Fact, Tree, unknown
from hearth.host.files import read_text, scaled, whole_number

_NODES = "sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One node; a node with memory alone has no CPUs, and `cpus` is empty."""

    number: int
    cpus: str  # a list like 0-7
    distances: Fact[tuple[int, ...]]  # to every node, in their order; 10 is near
    total_bytes: Fact[int]
    free_bytes: Fact[int]


@dataclass(frozen=True, slots=True)
class NumaFacts:
    """The nodes; a host without NUMA has one."""

    nodes: Fact[tuple[NumaNode, ...]]


def read_numa(root: Path = Path("/")) -> NumaFacts:
    """Reads the nodes."""
    tree = Tree(root)
    nodes: list[NumaNode] = []
    for name in tree.names(_NODES):
        number = whole_number(name.removeprefix("node")) if name.startswith("node") else None
        if number is None:
            continue
        base = f"{_NODES}/{name}"
        sizes = tree.text(f"{base}/meminfo")
        nodes.append(
            NumaNode(
                number=number,
                cpus=read_text(root / base / "cpulist"),
                distances=tree.text(f"{base}/distance").then(_distances, "not distances"),
                total_bytes=sizes.then(lambda text: _node_bytes(text, "MemTotal"), "no MemTotal"),
                free_bytes=sizes.then(lambda text: _node_bytes(text, "MemFree"), "no MemFree"),
            )
        )
    if not nodes:
        return NumaFacts(unknown(f"/{_NODES}", "no nodes there: a kernel or container without"))
    return NumaFacts(Fact(tuple(nodes), f"/{_NODES}"))


def _distances(text: str) -> tuple[int, ...] | None:
    numbers = [whole_number(part) for part in text.split()]
    return tuple(n for n in numbers if n is not None) if None not in numbers else None


def _node_bytes(text: str, wanted: str) -> int | None:
    """The size under a name of lines like `Node 0 MemTotal:  65536 kB`."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name.split()[-1:] == [wanted] and words:
            return scaled(whole_number(words[0]), KIB)
    return None
