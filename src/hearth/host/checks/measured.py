"""What was measured on this machine: kernels, memory, how the models' disk reads, GPU copies."""

from __future__ import annotations

import os

from hearth.core.units import MIB, format_bytes
from hearth.host.bandwidth import MemoryRead
from hearth.host.checks.check import Check, Examined, Fix, Level
from hearth.host.disk_speed import DiskSpeed
from hearth.host.gpu_copy import GpuCopies, GpuCopy
from hearth.host.profile import NOT_ASKED
from hearth.host.speed import Samples, Speeds

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
    return (*speeds, *_memory(profile.memory), *disks, *_gpus(profile.gpus))


def _memory(reads: tuple[MemoryRead, ...]) -> tuple[Check, ...]:
    """What threads of one node read, and what nodes read of each other."""
    found = [
        ("memory speed", [read for read in reads if read.cpu_node is None], _by_threads),
        ("memory speed by node", [read for read in reads if read.cpu_node is not None], _by_node),
    ]
    why = "a token reads all weights and its keys and values; kernels cannot be faster than this"
    wanted = "nothing: what the machine has; the plan's speeds are below it"
    return tuple(
        Check(name, "memory", Level.OK, "; ".join(map(describe, some)), wanted, why)
        for name, some, describe in found
        if some
    )


def _by_threads(read: MemoryRead) -> str:
    plural = "s" if read.num_threads > 1 else ""
    return f"{read.num_threads} thread{plural} {_gigabytes(read.bytes_s)}"


def _by_node(read: MemoryRead) -> str:
    whose = "its own" if read.cpu_node == read.memory_node else f"node {read.memory_node}'s"
    return f"node {read.cpu_node} of {whose} {_gigabytes(read.bytes_s)}"


def _gigabytes(bytes_s: Samples) -> str:
    """With what else was seen, where that differs."""
    shown = f"{1e-9 * bytes_s.median:.1f} GB/s"
    if not bytes_s.is_wide:
        return shown
    return f"{shown} ({1e-9 * bytes_s.least:.1f}-{1e-9 * bytes_s.most:.1f})"


def _gpus(gpus: GpuCopies) -> tuple[Check, ...]:
    """Nothing where nothing was tried."""
    if not gpus.cards and gpus == NOT_ASKED:
        return ()
    shown = "; ".join(map(_card, gpus.cards)) or gpus.why
    is_known = bool(gpus.cards) and not any(card.why for card in gpus.cards)
    level = Level.OK if is_known else Level.UNKNOWN
    why = "weights reach a card over this link, and keys and values that are kept on the host"
    return (Check("GPU copies", "gpu", level, shown, "what the PCIe link of the card gives", why),)


def _card(card: GpuCopy) -> str:
    if card.to_gpu_bytes_s is None or card.from_gpu_bytes_s is None:
        return f"{card.name}: {card.why}"
    there, back = _gigabytes(card.to_gpu_bytes_s), _gigabytes(card.from_gpu_bytes_s)
    return f"{card.name}: to it {there}, from it {back}"


def _kernels(speeds: Speeds) -> Check:
    rates = ", ".join(precision.describe() for precision in speeds.precisions)
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
