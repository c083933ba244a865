"""Reads what the kernel says in small files, whatever stands in them.

Nothing here raises: a file that is missing, may not be read, is huge or holds bytes of any kind
gives a text that may be empty, and numbers that may be None. Every reader of /proc and /sys in
`host` goes through these functions, so that damage is dealt with once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The largest is /proc/cpuinfo: some 2 KB for each of some thousand CPUs.
MAX_FILE_BYTES = 8 << 20
_PIECE_BYTES = 1 << 16
LARGEST = (1 << 63) - 1  # what JSON readers and the kernel itself can hold
_MOST_DIGITS = 19  # of LARGEST; int() refuses thousands of digits with ValueError
_MOST_CPUS = 1 << 16
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileText:
    """A file's text; empty, with the reason in `why`, where it could not be read."""

    text: str
    why: str = ""


def read_file(path: Path) -> FileText:
    """The file's text, at most MAX_FILE_BYTES of it; bytes that are no UTF-8 become marks."""
    try:
        # /proc/sys refuses a read of megabytes with ENOMEM: the kernel allocates what is asked for.
        with path.open("rb", buffering=0) as file:
            data = b""
            while len(data) < MAX_FILE_BYTES and (piece := file.read(_PIECE_BYTES)):
                data += piece
    except FileNotFoundError:
        return FileText("", "no such file")
    except OSError as error:
        return FileText("", (error.strerror or "cannot be read").lower())
    except ValueError:  # a null byte in a name that came from another file
        return FileText("", "no such file")
    return FileText(data.decode("utf-8", "replace"))


def read_text(path: Path) -> str:
    """The file's text, stripped; empty where it cannot be read."""
    return read_file(path).text.strip()


def whole_number(text: str) -> int | None:
    """The number that ASCII digits make, with a sign or without; None for everything else."""
    digits = text.strip()
    unsigned = digits.removeprefix("-")
    if not (unsigned.isascii() and unsigned.isdigit() and len(unsigned) <= _MOST_DIGITS):
        return None
    number = int(digits)
    return number if abs(number) <= LARGEST else None


def scaled(number: int | None, factor: int) -> int | None:
    """`number` units of `factor`; None for what is no size: negative, or beyond 64 bits."""
    if number is None or not 0 <= number * factor <= LARGEST:
        return None
    return number * factor


def list_names(directory: Path) -> list[str]:
    """Names of a directory's entries, numbers in their order; empty where it cannot be read."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except (OSError, ValueError):
        return []
    return sorted(names, key=_natural)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key by which cpu2 comes before cpu10; the name itself settles what is left."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)], name


def cpu_list(text: str) -> tuple[int, ...] | None:
    """The CPUs of a list like 0-3,8, ascending; None where it is none. Empty text: no CPU."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part and not text.strip():
            break
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _MOST_CPUS:
            return None
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))
