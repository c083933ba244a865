"""GPUs: whether they can be seen, who uses them, how they are connected.

hearth's own kernels serve on the processor; a GPU serves what runs through transformers.
"""

from __future__ import annotations

from hearth.core.units import format_bytes
from hearth.host.checks.check import Check, Examined, Fix, Level, shown
from hearth.host.facts.gpu import INSTALL_HINT, Gpu

AREA = "GPU"
_WHY = "no GPU is needed: hearth's kernels serve on the processor, transformers' models use a GPU"
_MISMATCH = "driver/library version mismatch"


def check_gpus(examined: Examined) -> tuple[Check, ...]:
    """What there is."""
    facts, software = examined.facts.gpu, examined.facts.software
    if facts.gpus.value:
        return (_present(facts.gpus.value), *_links(facts.gpus.value))
    why = facts.gpus.why or "no card"
    if _MISMATCH in why:
        fix = Fix("shell", "sudo reboot  # or unload and load the nvidia modules")
        message = "the driver was updated while the old one is loaded: CUDA fails until it is gone"
        return (Check("GPUs", AREA, Level.FAIL, why, "one driver version", message, (fix,)),)
    if software.driver.is_known:
        fixes = (
            Fix("pip", INSTALL_HINT),
            Fix("conda", "conda install -c conda-forge nvidia-ml-py"),
        )
        measured = f"driver {software.driver.value} is loaded; {why}"
        return (Check("GPUs", AREA, Level.UNKNOWN, measured, "an answer of NVML", _WHY, fixes),)
    return (
        Check("GPUs", AREA, Level.OK, f"none seen, and no driver in /proc ({why})", "none", _WHY),
    )


def _present(gpus: tuple[Gpu, ...]) -> Check:
    listed = "; ".join(
        f"{gpu.index}: {shown(gpu.name)}, {shown(gpu.free_bytes, format_bytes)} of "
        f"{shown(gpu.total_bytes, format_bytes)} free"
        for gpu in gpus
    )
    users = {p.pid: p.name.value or "?" for gpu in gpus for p in gpu.processes.value or ()}
    level = Level.OK
    fixes: tuple[Fix, ...] = ()
    if users:
        level = Level.WARN
        listed += "; used by " + ", ".join(f"{name} ({pid})" for pid, name in users.items())
        fixes = (Fix("shell", "nvidia-smi  # ends nothing: shows who takes the memory"),)
    return Check("GPUs", AREA, level, listed, "cards that no other process uses", _WHY, fixes)


def _links(gpus: tuple[Gpu, ...]) -> tuple[Check, ...]:
    """The width does not depend on load: a card with fewer lanes than it has sits in another slot.

    The generation does: it is lowered while the card idles, so it is not judged.
    """
    narrow = [
        f"{gpu.index}: ×{now} of ×{most}"
        for gpu in gpus
        if (now := gpu.pcie.width.value) and (most := gpu.pcie.max_width.value) and now < most
    ]
    if not narrow:
        return ()
    return (
        Check(
            "PCIe width",
            AREA,
            Level.WARN,
            ", ".join(narrow),
            "as many lanes as the card has",
            "weights reach the card more slowly, and cards each other",
            (Fix("hint", "another slot or riser; see: nvidia-smi -q -d PCIE"),),
        ),
    )
