"""The limit of open files: a server raises its own, which needs no privilege.

Every connection is an open file. Logins give a soft limit of 1024 for the sake of programs that
call select(), which neither process of hearth does; the hard limit is what is meant for the others.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

# Some containers have a hard limit of a thousand million, and some libraries walk through all of
# them. The kernel's own default for the largest limit (fs.nr_open) is as much as anybody needs.
MOST_OPEN_FILES = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The limit that holds now, the one before, and why it is that."""

    limit: int
    former: int
    reason: str


def raise_open_files() -> OpenFiles:
    """Raises this process's soft limit to its hard one; a process that it starts has it, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = hard == resource.RLIM_INFINITY
    target = MOST_OPEN_FILES if is_unlimited else min(hard, MOST_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return OpenFiles(soft, soft, "it is there already")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        return OpenFiles(soft, soft, f"it cannot be raised to {target}: {error}")
    reason = "the hard limit" if target == hard else f"the hard limit is {hard}, more than needed"
    return OpenFiles(target, soft, reason)
