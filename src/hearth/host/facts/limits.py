"""Limits of the kernel and of this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hearth.host.facts.fact import Fact, Tree
from hearth.host.files import whole_number

UNLIMITED = -1
_LIMITS = "proc/self/limits"


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Of this process, soft and hard; UNLIMITED (-1) where there is none."""

    nofile_soft: Fact[int]
    nofile_hard: Fact[int]
    memlock_soft_bytes: Fact[int]
    memlock_hard_bytes: Fact[int]


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """`files_in_use`: open files of the whole host."""

    process: ProcessLimits
    file_max: Fact[int]
    files_in_use: Fact[int]
    somaxconn: Fact[int]
    swappiness: Fact[int]
    overcommit_memory: Fact[int]
    max_map_count: Fact[int]


def read_limits(root: Path = Path("/")) -> LimitFacts:
    """Reads the limits."""
    tree = Tree(root)
    return LimitFacts(
        process=read_process_limits(tree),
        file_max=tree.number("proc/sys/fs/file-max"),
        files_in_use=tree.text("proc/sys/fs/file-nr").then(
            lambda text: whole_number(text.split()[0]), "not a number"
        ),
        somaxconn=tree.number("proc/sys/net/core/somaxconn"),
        swappiness=tree.number("proc/sys/vm/swappiness"),
        overcommit_memory=tree.number("proc/sys/vm/overcommit_memory"),
        max_map_count=tree.number("proc/sys/vm/max_map_count"),
    )


def read_process_limits(tree: Tree) -> ProcessLimits:
    """Reads the limits of this process."""
    text = tree.text(_LIMITS)

    def limit(name: str, column: int) -> Fact[int]:
        found = text.then(lambda all_: _limit(all_, name, column), f"no {name} there")
        return Fact(found.value, f"{name} in /{_LIMITS}", found.why)

    return ProcessLimits(
        nofile_soft=limit("Max open files", 0),
        nofile_hard=limit("Max open files", 1),
        memlock_soft_bytes=limit("Max locked memory", 0),
        memlock_hard_bytes=limit("Max locked memory", 1),
    )


def _limit(text: str, name: str, column: int) -> int | None:
    for line in text.splitlines():
        values = line.removeprefix(name).split() if line.startswith(name) else []
        if len(values) > column:
            word = values[column]
            return UNLIMITED if word == "unlimited" else whole_number(word)
    return None
