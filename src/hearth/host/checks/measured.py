"""What was measured on this machine: the kernels' speeds, and how the models' disk reads."""

from __future__ import annotations

import os

from hearth.core.units import MIB, format_bytes
from hearth.host.checks.check import Check, Examined, Fix, Level
from hearth.host.disk_speed import DiskSpeed
from hearth.host.speed import Speeds

SLOW_READ_S = 0.010
SLOW_BYTES_S = 150 * MIB


def check_measured(examined: Examined) -> tuple[Check, ...]:
    """Nothing where nothing was measured."""
    profile = examined.profile
    if profile is None:
        return ()
    speeds = () if profile.speeds is None else (_kernels(profile.speeds),)
    directory = os.path.abspath(examined.facts.storage.directory)  # noqa: PTH100 -- as it is named
    disks = (_disk(disk) for disk in profile.disks if disk.path == directory)
    return (*speeds, *disks)


def _kernels(speeds: Speeds) -> Check:
    rates = ", ".join(f"{p.precision} {1e-9 / p.byte_s(1):.1f} GB/s" for p in speeds.precisions)
    varies = f"; single steps vary by {speeds.spread:.0%}" if speeds.spread > 0.1 else ""
    return Check(
        "kernel speeds",
        "processor",
        Level.OK,
        f"weights are read at {rates} ({speeds.source}{varies})",
        "what the memory gives; a token reads all weights",
        "the plan predicts with them: hearth plan MODEL",
    )


def _disk(disk: DiskSpeed) -> Check:
    is_slow = disk.random_read_p99_s > SLOW_READ_S or disk.read_bytes_s < SLOW_BYTES_S
    cached = "" if disk.is_direct else "; through the page cache, which may have answered"
    fix = Fix("hearth", "hearth pull MODEL --stage DIRECTORY_ON_AN_SSD")
    return Check(
        "disk speed",
        "storage",
        Level.WARN if is_slow else Level.OK,
        f"{format_bytes(disk.read_bytes_s)}/s in one go; 4 KiB here and there in "
        f"{disk.random_read_s * 1e3:.2f} ms, 99 % within {disk.random_read_p99_s * 1e3:.2f} ms"
        f" ({disk.source}{cached})",
        f"{format_bytes(SLOW_BYTES_S)}/s or more, answers within {SLOW_READ_S * 1e3:.0f} ms",
        "a first start reads the whole model from there",
        (fix,) if is_slow else (),
    )
