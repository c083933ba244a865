"""What was measured on this machine, kept for the plan: a JSON file in the user's cache.

It holds for the machine, the threads and the kernels that it was measured with; a file of another
machine (a home directory on a network) or of another version of the file is as good as none.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from hearth.core.paths import home_expanded
from hearth.host.bandwidth import MemoryRead
from hearth.host.cpu import format_cpus
from hearth.host.disk_speed import DiskSpeed
from hearth.host.facts.cpu import read_cpu_model
from hearth.host.files import read_text
from hearth.host.gpu_copy import GpuCopies
from hearth.host.placement import Placement
from hearth.host.speed import Samples, Speeds

PROFILE_VERSION = 3
DEFAULT_PATH = "~/.cache/hearth/profile.json"
NOT_ASKED = GpuCopies((), "not measured")


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """`machine`: what the speeds belong to, see `machine_name`. Times are seconds since 1970."""

    version: int
    machine: str
    measured_at: float
    speeds: Speeds | None = None
    disks: tuple[DiskSpeed, ...] = ()
    notes: tuple[str, ...] = ()
    memory: tuple[MemoryRead, ...] = ()
    gpus: GpuCopies = NOT_ASKED


def profile_path() -> Path:
    """Where the profile lies: $XDG_CACHE_HOME is honoured."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and Path(cache).is_absolute():
        return Path(cache) / "hearth" / "profile.json"
    return home_expanded(DEFAULT_PATH)


def machine_name(isa: str, placement: Placement, root: Path = Path("/")) -> str:
    """The machine, its processor, the kernels and the threads: what a speed belongs to."""
    model = read_cpu_model(root) or "unknown processor"
    machine = read_text(root / "etc/machine-id")[:8] or "unnamed"
    kind = f"{placement.core_kind} " if placement.core_kind else ""
    where = "any CPU"
    if placement.is_asked:
        where = f"CPUs {format_cpus(placement.cpus)}"
    elif placement.cpus:  # which ones depends on who came first, and they are alike
        where = f"{kind}cores of their own"
    return f"{machine}: {model}; {isa}; {placement.num_threads} threads on {where}"


def new_profile(
    machine: str,
    speeds: Speeds | None,
    disks: tuple[DiskSpeed, ...],
    notes: tuple[str, ...] = (),
    *,
    memory: tuple[MemoryRead, ...] = (),
    gpus: GpuCopies = NOT_ASKED,
) -> MachineProfile:
    """One of now."""
    now = time.time()
    return MachineProfile(PROFILE_VERSION, machine, now, speeds, disks, notes, memory, gpus)


def age_of(profile: MachineProfile, now: float) -> str:
    """`3 hours ago`; `now`: seconds since 1970."""
    seconds = now - profile.measured_at
    for name, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {name}{'s' * (count > 1)} ago"
    return "just now"


def load_profile(path: Path, machine: str) -> MachineProfile | None:
    """None: there is none, it cannot be read, or it belongs to something else."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=MachineProfile)
    except (OSError, ValueError, RecursionError):  # DecodeError is a ValueError, as is bad UTF-8
        return None
    is_usable = profile.version == PROFILE_VERSION and profile.machine == machine
    return profile if is_usable and _is_sound(profile) else None


def _is_sound(profile: MachineProfile) -> bool:
    """Whether what it holds can be shown and reckoned with: it may have been edited, or damaged."""
    samples = [read.bytes_s for read in profile.memory]
    samples += [s for g in profile.gpus.cards for s in (g.to_gpu_bytes_s, g.from_gpu_bytes_s) if s]
    rates = [disk.read_bytes_s for disk in profile.disks]
    is_measured = all(map(_are_sound, samples)) and all(0 < rate < math.inf for rate in rates)
    return is_measured and _are_speeds(profile.speeds)


def _are_sound(samples: Samples) -> bool:
    return 0 < samples.least <= samples.median <= samples.most < math.inf


def _are_speeds(speeds: Speeds | None) -> bool:
    """Whether times can be made of it."""
    if speeds is None:
        return True
    rates = [speeds.attend_flops_s, speeds.kv_bytes_s]
    for precision in speeds.precisions:
        rows = [point.num_rows for point in precision.points]
        if not rows or rows[0] < 1 or any(a >= b for a, b in pairwise(rows)):
            return False
        if precision.first_row_s is not None and not _are_sound(precision.first_row_s):
            return False
        rates += [point.byte_s for point in precision.points]
    return 0 <= speeds.step_s < math.inf and all(0 < rate < math.inf for rate in rates)


def save_profile(path: Path, profile: MachineProfile) -> None:
    """Whole or not at all. Raises OSError."""
    if not path.is_absolute():
        raise OSError(f"{path} is no absolute path: there is no home directory")
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
