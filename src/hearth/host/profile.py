"""What was measured on this machine, kept for the plan: a JSON file in the user's cache.

It holds for the machine, the threads and the kernels that it was measured with; a file of another
machine (a home directory on a network) or of another version of the file is as good as none.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hearth.core.paths import home_expanded
from hearth.host.disk_speed import DiskSpeed
from hearth.host.speed import Speeds

PROFILE_VERSION = 1
DEFAULT_PATH = "~/.cache/hearth/profile.json"


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """`machine`: what the speeds belong to, see `machine_name`. Times are seconds since 1970."""

    version: int
    machine: str
    measured_at: float
    speeds: Speeds | None = None
    disks: tuple[DiskSpeed, ...] = ()
    notes: tuple[str, ...] = ()


def profile_path() -> Path:
    """Where the profile lies: $XDG_CACHE_HOME is honoured."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and Path(cache).is_absolute():
        return Path(cache) / "hearth" / "profile.json"
    return home_expanded(DEFAULT_PATH)


def machine_name(isa: str, num_threads: int, root: Path = Path("/")) -> str:
    """The processor, the kernels and the threads: what a speed belongs to."""
    try:
        text = (root / "proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return f"{next(names, 'unknown processor')}; {isa}; {num_threads} threads"


def new_profile(
    machine: str,
    speeds: Speeds | None,
    disks: tuple[DiskSpeed, ...],
    notes: tuple[str, ...] = (),
) -> MachineProfile:
    """One of now."""
    return MachineProfile(PROFILE_VERSION, machine, time.time(), speeds, disks, notes)


def load_profile(path: Path, machine: str) -> MachineProfile | None:
    """None: there is none, it cannot be read, or it belongs to something else."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=MachineProfile)
    except (OSError, msgspec.DecodeError):
        return None
    is_usable = profile.version == PROFILE_VERSION and profile.machine == machine
    return profile if is_usable else None


def save_profile(path: Path, profile: MachineProfile) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(profile), indent=2))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
