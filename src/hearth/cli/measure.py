"""Measures this machine for the plan, with progress on stderr, and keeps what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.host.core_lease import open_leases
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
    from hearth.host.bandwidth import MemoryReads
    from hearth.host.placement import Placement
    from hearth.host.speed import Speeds

_MEMORY_TURNS = 2  # of the kernels' parts one in so many has a sample of memory before it


def known_profile(isa: str, placement: Placement) -> MachineProfile | None:
    """What an earlier measurement found for these kernels and threads."""
    return load_profile(profile_path(), machine_name(isa, placement))


def measure_machine(isa: str, placement: Placement, directory: Path) -> MachineProfile:
    """The kernels' speeds, memory, the disk that holds a directory, copies to GPUs; some 20 s.

    What cannot be measured or kept is said on stderr. Raises KernelError, CapacityError.
    """
    from hearth.host.gpu_copy import measure_gpu_copies

    notes = [*_company()]
    reads = _memory_reads(placement)
    speeds = _kernels(placement, isa, reads)
    notes += reads.notes
    _show(f"the disk that holds {directory}")
    disks: tuple[DiskSpeed, ...] = ()
    try:
        disks = (measure_disk(directory),)
    except OSError as error:
        notes.append(f"the disk that holds {directory} was not measured: {error}")
    _show("copies to GPUs")
    gpus = measure_gpu_copies()
    notes += (f"copies to {card.name} were {card.why}" for card in gpus.cards if card.why)
    machine = machine_name(isa, placement)
    known = load_profile(profile_path(), machine)
    measured = {disk.path for disk in disks}
    others = (disk for disk in (known.disks if known else ()) if disk.path not in measured)
    profile = new_profile(
        machine, speeds, (*disks, *others), tuple(notes), memory=reads.results(), gpus=gpus
    )
    try:
        save_profile(profile_path(), profile)
    except OSError as error:
        notes.append(f"what was measured is not kept: {error}")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return profile


def _show(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


def _company() -> tuple[str, ...]:
    """Servers that run meanwhile."""
    with open_leases() as leases:
        pids = sorted({pid for holders in leases.others().pids.values() for pid in holders})
    if not pids:
        return ()
    shown = ", ".join(map(str, pids))
    return (f"measured beside the hearth server of process {shown}: speeds are those beside it",)


def _memory_reads(placement: Placement) -> MemoryReads:
    from hearth.engine.speeds import last_cache_bytes
    from hearth.host.bandwidth import MemoryReads, plan_reads
    from hearth.host.memory import read_memory

    plans = plan_reads(placement.cpus)
    return MemoryReads(plans, last_cache_bytes(), read_memory().available_bytes)


def _kernels(placement: Placement, isa: str, reads: MemoryReads) -> Speeds:
    """The kernels, with samples of memory before, between and behind."""
    from hearth.engine.speeds import measure_speeds

    def report(what: str, done: int, total: int) -> None:
        if done % _MEMORY_TURNS == 0:
            _show(f"memory, and then {what} ({done + 1} of {total})")
            reads.sample()
        else:
            _show(f"{what} ({done + 1} of {total})")

    speeds = measure_speeds(placement, isa, report)
    reads.sample()
    return speeds
