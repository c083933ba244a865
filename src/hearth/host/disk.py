"""What lies under a directory: its file system and the free space. The directory need not exist.

Facts are read when asked, never at import. `root` lets tests lay out a file system of their own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hearth.host.files import read_text

# A page of a file there is fetched by another process or machine, which may be gone by then.
_REMOTE = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "nfs", "nfs4")
) | frozenset(("ocfs2", "smb3", "vboxsf", "virtiofs"))
_IN_MEMORY = frozenset(("tmpfs", "ramfs"))


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A directory's file system; `file_system` is empty where it cannot be told."""

    file_system: str
    free_bytes: int  # for users without privileges

    @property
    def is_remote(self) -> bool:
        """Whether reading a page may depend on a network or on another process."""
        return self.file_system in _REMOTE or self.file_system.startswith("fuse")

    @property
    def is_in_memory(self) -> bool:
        """Whether its files occupy memory that the kernel cannot take back."""
        return self.file_system in _IN_MEMORY


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    point: Path
    file_system: str
    source: str  # a device, server:/export, or a word
    device_number: str  # major:minor; major 0 for what has no block device of its own


def read_disk(directory: Path, root: Path = Path("/")) -> DiskFacts:
    """Of the directory, or of the nearest one above that exists. Raises OSError."""
    existing = next(p for p in (directory, *directory.parents) if p.exists()).resolve()
    found = os.statvfs(existing)
    mount = find_mount(existing, root)
    kind = "" if mount is None else mount.file_system
    return DiskFacts(kind, found.f_bavail * found.f_frsize)


def find_mount(path: Path, root: Path = Path("/")) -> Mount | None:
    """The mount with the longest path above `path` (proc(5), mountinfo); None where unknown."""
    best = None
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        fields, types = mount.split(" "), [*source.split(" "), ""]
        if len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        # Of two mounts on one point the later one hides the earlier.
        if path.is_relative_to(point) and (
            best is None or len(point.parts) >= len(best.point.parts)
        ):
            best = Mount(point, types[0], _unescaped(types[1]), fields[2])
    return best


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
