"""Measures this machine for the plan, with progress on stderr, and keeps what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.host.disk_speed import DiskSpeed, measure_disk
from hearth.host.profile import (
    MachineProfile,
    load_profile,
    machine_name,
    new_profile,
    profile_path,
    save_profile,
)

if TYPE_CHECKING:
    from hearth.host.placement import Placement


def known_profile(isa: str, placement: Placement) -> MachineProfile | None:
    """What an earlier measurement found for these kernels and threads."""
    return load_profile(profile_path(), machine_name(isa, placement))


def measure_machine(isa: str, placement: Placement, directory: Path) -> MachineProfile:
    """The kernels' speeds, and those of the disk that holds a directory; some 15 s.

    What cannot be measured or kept is said on stderr. Raises KernelError, CapacityError.
    """
    from hearth.engine.speeds import measure_speeds

    def show(what: str, done: int, total: int) -> None:
        print(f"measuring {what} ({done + 1} of {total})", file=sys.stderr, flush=True)

    num_parts = 5
    speeds = measure_speeds(placement, isa, lambda what, done, _: show(what, done, num_parts))
    show(f"the disk that holds {directory}", num_parts - 1, num_parts)
    notes: list[str] = []
    disks: tuple[DiskSpeed, ...] = ()
    try:
        disks = (measure_disk(directory),)
    except OSError as error:
        notes.append(f"the disk that holds {directory} was not measured: {error}")
    machine = machine_name(isa, placement)
    known = load_profile(profile_path(), machine)
    measured = {disk.path for disk in disks}
    others = (disk for disk in (known.disks if known else ()) if disk.path not in measured)
    profile = new_profile(machine, speeds, (*disks, *others), tuple(notes))
    try:
        save_profile(profile_path(), profile)
    except OSError as error:
        notes.append(f"what was measured is not kept: {error}")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return profile
