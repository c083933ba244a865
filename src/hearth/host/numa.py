"""Which NUMA node a server uses: the cores of one, and its memory.

A core reads the memory of its own node faster than that of others, and threads on two nodes share
one model's memory badly: a second server on the second node is worth more (docs/tuning.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import ConfigError
from hearth.host.cpu import read_usable_cores
from hearth.host.facts.numa import NumaNode, read_numa
from hearth.host.files import cpu_list

ONE_NODE = "one node"


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
) -> NodeChoice:
    """Resolves `--numa` ("auto", "none" or a node's number).

    `allowed`: the CPUs that this process may use; `bound`: those that `--cpu-bind` lists;
    `threads`: as many as are wanted, None: one a core. Raises ConfigError for a node that is none,
    or has no CPU of them.
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
    best = max(
        nodes.values(),
        key=lambda node: (
            read_usable_cores(root, _cpus(node) & everywhere).count,
            node.free_bytes.value or 0,
            -node.number,
        ),
    )
    cores = read_usable_cores(root, _cpus(best) & everywhere).count
    if threads is not None and threads > cores:
        return NodeChoice(None, everywhere, f"--threads {threads} is more than a node has cores")
    reason = f"of {len(nodes)} nodes the one with the most cores and free memory"
    return NodeChoice(best.number, _cpus(best) & everywhere, f"{reason}; --numa none uses all")


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
