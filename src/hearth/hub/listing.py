"""What a hub says about a revision of a model: its commit, and its files with size and checksum.

Everything here came from a server, so it is checked before it becomes a path: `check_path` lets
nothing through that could leave the model's directory or hide in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hearth.core.errors import RemoteError
from hearth.hub.digests import Digest

MAX_PATH_BYTES = 1024
MAX_PART_BYTES = 255  # NAME_MAX of Linux' file systems
MAX_FILE_BYTES = 1 << 50
MANIFEST = ".hearth.json"
STAGED = ".stage.json"  # what makes a staged copy whole
_OWN = (MANIFEST, f"{MANIFEST}.part", STAGED)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`digest` None: the source gives no checksum for it."""

    path: str
    num_bytes: int
    digest: Digest | None
    url: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A revision's files. `commit` names its contents and never means others later."""

    source: str  # as shown: huggingface.co, modelscope.cn, …
    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    page: str = ""  # the model's page, for people
    headers: Mapping[str, str] = field(default_factory=dict)  # of requests for its files


def check_path(path: object, source: str) -> str:
    """The path, if it stays within a directory on every system. Raises RemoteError."""
    if isinstance(path, str) and is_inside(path):
        return path
    raise RemoteError(
        f"{source} lists a file {str(path)[:200]!r} (permitted: a relative path without '..', "
        "'\\', ':' and control characters)",
        hint="this is not a path of a model's file: do not use this source",
    )


def check_size(num_bytes: object, path: str, source: str) -> int:
    """The size, if it is one. Raises RemoteError."""
    if type(num_bytes) is int and 0 <= num_bytes <= MAX_FILE_BYTES:  # a bool is none
        return num_bytes
    raise RemoteError(f"{source} gives {num_bytes!r} as the size of {path} (permitted: a number)")


def check_unique(files: tuple[RemoteFile, ...], source: str) -> tuple[RemoteFile, ...]:
    """The files, if no path is there twice or is a directory of another. Raises RemoteError."""
    paths = [file.path for file in files]
    seen = set(paths)
    parents = {path[:i] for path in paths for i, c in enumerate(path) if c == "/"}
    if len(seen) != len(paths) or seen & parents:
        raise RemoteError(f"{source} lists a path twice, or one that is a file and a directory")
    return files


def is_inside(path: str) -> bool:
    """Whether a path stays within a directory, and is none of our own files there."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return False
    parts = path.split("/")
    return (
        0 < len(encoded) <= MAX_PATH_BYTES
        and not any(c in path for c in "\\:\x7f")
        and not any(ord(c) < 32 for c in path)
        and all(part not in ("", ".", "..") for part in parts)
        and all(len(part.encode()) <= MAX_PART_BYTES for part in parts)
        and parts[0].lower() not in _OWN  # some file systems take either case
    )
