"""Which NUMA node a server uses: the cores of one, and its memory.

A core reads the memory of its own node faster than that of others, and threads on two nodes share
one model's memory badly: a second server on the second node is worth more (docs/tuning.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import ConfigError
from hearth.host.cpu import hardware_threads, read_usable_cores
from hearth.host.facts.numa import NumaNode, read_numa
from hearth.host.files import cpu_list

ONE_NODE = "one node"
_NONE_TAKEN: Mapping[int, tuple[int, ...]] = {}


@dataclass(frozen=True, slots=True)
class NodeChoice:
    """`node` None: memory is taken where Linux takes it. `cpus`: those that may be used then."""

    node: int | None
    cpus: frozenset[int]
    reason: str


def choose_node(
    asked: str,
    allowed: Collection[int],
    bound: Collection[int] = (),
    threads: int | None = None,
    root: Path = Path("/"),
    taken: Mapping[int, tuple[int, ...]] = _NONE_TAKEN,
) -> NodeChoice:
    """Resolves `--numa` ("auto", "none" or a node's number).

    `allowed`: the CPUs that this process may use; `bound`: those that `--cpu-bind` lists;
    `threads`: as many as are wanted, None: one a core; `taken`: by CPU, the processes of other
    servers there. Raises ConfigError for a node that is none, or has no CPU of them.
    """
    everywhere = frozenset(bound or allowed)
    if asked == "none":
        return NodeChoice(None, everywhere, "--numa none")
    host = [node for node in read_numa(root).nodes.value or () if node.cpus]
    nodes = {node.number: node for node in host if _cpus(node) & everywhere}
    if asked != "auto":
        return _asked_node(asked, nodes, everywhere, bool(bound))
    if len(host) < 2 or not nodes:
        return NodeChoice(None, everywhere, ONE_NODE)
    if len(nodes) == 1:
        (only,) = nodes.values()
        reason = "all CPUs that may be used are on it"
        return NodeChoice(only.number, everywhere, reason)
    if bound:
        numbers = ", ".join(map(str, nodes))
        return NodeChoice(None, everywhere, f"the CPUs of --cpu-bind are on nodes {numbers}")
    return _freest(nodes, everywhere, threads, root, taken)


def _freest(
    nodes: dict[int, NumaNode],
    everywhere: frozenset[int],
    threads: int | None,
    root: Path,
    taken: Mapping[int, tuple[int, ...]],
) -> NodeChoice:
    """Of several nodes the one with the most cores that no other server has."""
    uses = {n: _use_of(node, everywhere, root, taken) for n, node in nodes.items()}
    best = nodes[max(nodes, key=lambda n: (uses[n].rank(threads), nodes[n].free_bytes.value or 0))]
    use = uses[best.number]
    if threads is not None and threads > use.num_cores:
        return NodeChoice(None, everywhere, f"--threads {threads} is more than a node has cores")
    reason = f"of {len(nodes)} nodes the one with the most cores and free memory"
    if any(other.num_free < other.num_cores for other in uses.values()):
        reason = f"of {len(nodes)} nodes the one with the most free cores ({use.describe()})"
    return NodeChoice(best.number, _cpus(best) & everywhere, f"{reason}; --numa none uses all")


@dataclass(frozen=True, slots=True)
class _NodeUse:
    """Cores of a node that may be used, those that no other server has, and how many others do."""

    num_cores: int
    num_free: int
    num_servers: int

    def rank(self, threads: int | None) -> tuple[bool, bool, int, int, int]:
        """More is better: enough cores at all, all of them free, free ones, few others."""
        is_enough = threads is None or self.num_cores >= threads
        is_free = self.num_free == self.num_cores
        return (is_enough, is_free, self.num_free, -self.num_servers, self.num_cores)

    def describe(self) -> str:
        return f"{self.num_free} of {self.num_cores}"


def _use_of(
    node: NumaNode, everywhere: frozenset[int], root: Path, taken: Mapping[int, tuple[int, ...]]
) -> _NodeUse:
    cores = read_usable_cores(root, _cpus(node) & everywhere)
    if not taken:
        return _NodeUse(cores.count, cores.count, 0)
    holders = [
        {pid for thread in hardware_threads(root, cpu) for pid in taken.get(thread, ())}
        for cpu in cores.cpus
    ]
    num_free = sum(not pids for pids in holders)
    return _NodeUse(len(cores.cpus), num_free, len(set[int]().union(*holders)))


def _asked_node(
    asked: str, nodes: dict[int, NumaNode], everywhere: frozenset[int], is_bound: bool
) -> NodeChoice:
    node = nodes.get(int(asked)) if asked.isascii() and asked.isdigit() else None
    if node is None:
        whose = "of --cpu-bind" if is_bound else "that this process may use"
        numbers = ", ".join(map(str, nodes)) or "none, the kernel shows no nodes"
        raise ConfigError(
            f"--numa is {asked!r}: neither auto nor none nor a node with CPUs {whose}",
            param="numa",
            hint=f"nodes: {numbers}",
        )
    if is_bound and not everywhere <= _cpus(node):
        raise ConfigError(
            f"--numa is {asked}, and some CPUs of --cpu-bind are on another node",
            param="numa",
            hint=f"CPUs of node {asked}: {node.cpus}",
        )
    return NodeChoice(node.number, _cpus(node) & everywhere, "--numa")


def _cpus(node: NumaNode) -> frozenset[int]:
    return frozenset(cpu_list(node.cpus) or ())
