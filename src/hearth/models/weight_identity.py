"""Whether weight files are still the ones they were, without reading them.

A file is told by its inode, size, modification and change time (nanoseconds), and the hash of its
safetensors header; an index of shards, which has none, by that of its text. Nobody can change a
byte of a file and keep all of them: every write sets the change time, which, unlike the
modification time, cannot be set back by any call; a file put in the place of another has another
inode or change time. What does change them without need (chmod, a copy, another link) costs one
more packing and no wrong answer. Clocks of file systems tick in milliseconds, so that a file counts
as settled only some ticks after its last change. Only a change beneath the file system (a raw
device, a restored snapshot that is then edited within the same nanosecond) could go unseen.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hearth.core.errors import WeightsError
from hearth.models.gguf.file import MAGIC
from hearth.models.safetensors_file import MAX_HEADER_BYTES

# Kernels without fine-grained timestamps stamp files at their timer's tick: at most 10 ms.
SETTLED_S = 0.05
_GGUF_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """One file as it was when looked at. The device is left out: its number changes at boot."""

    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int
    header_hash: str


def identify(paths: Sequence[Path]) -> tuple[FileIdentity, ...]:
    """The identity of each file; waits up to SETTLED_S for one just written.

    Raises WeightsError when a file cannot be read.
    """
    found = tuple(_identify(path) for path in paths)
    age_s = time.time() - max((f.changed_ns for f in found), default=0) / 1e9
    if 0 <= age_s < SETTLED_S:
        time.sleep(SETTLED_S - age_s)
        return tuple(_identify(path) for path in paths)
    return found


def _header_bytes(begin: bytes) -> int:
    """How much is hashed; a GGUF header has no length, and may be as long as its vocabulary."""
    if begin.startswith(MAGIC):
        return _GGUF_BYTES
    return min(int.from_bytes(begin, "little"), MAX_HEADER_BYTES)


def _identify(path: Path) -> FileIdentity:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            length = file.read(8)
            header = file.read(_header_bytes(length))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.blake2b(length + header, digest_size=32).hexdigest()
    return FileIdentity(
        status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest
    )
