"""Settings of the memory."""

from __future__ import annotations

from hearth.core.units import format_bytes
from hearth.host.checks.check import Check, Examined, Fix, Level, shown, tune_fix
from hearth.host.facts.limits import UNLIMITED

AREA = "memory"
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def check_huge_pages(examined: Examined) -> tuple[Check, ...]:
    """Whether the kernel may give huge pages to who asks."""
    mode = examined.facts.memory.thp_mode
    level = Level.UNKNOWN if mode.value is None else Level.OK
    fixes: tuple[Fix, ...] = ()
    if mode.value == "never":
        level = Level.WARN
        fixes = (
            tune_fix("thp"),
            Fix("shell", f"echo madvise | sudo tee {_THP}"),
        )
    defrag = shown(examined.facts.memory.thp_defrag)
    return (
        Check(
            "huge pages",
            AREA,
            level,
            f"{shown(mode)}, defrag {defrag}",
            "madvise or always",
            "weights in pages of 2 MiB miss the TLB less often; hearth asks for them by madvise",
            fixes,
        ),
    )


def check_swap(examined: Examined) -> tuple[Check, ...]:
    """Whether memory has already run out."""
    memory = examined.facts.memory
    total, free = memory.swap_total_bytes.value, memory.swap_free_bytes.value
    measured, level = shown(memory.swap_total_bytes, format_bytes), Level.OK
    fixes: tuple[Fix, ...] = ()
    if total is None or (total and free is None):
        level = Level.UNKNOWN
    elif total and free is not None:
        used = total - free
        measured = f"{format_bytes(used)} of {format_bytes(total)} used"
        if 2 * used > total:
            level = Level.WARN
            fixes = (Fix("hint", "end programs that take memory: ps aux --sort=-rss | head"),)
    elif total == 0:
        measured = "none"
    why = "a swap that fills means that memory ran out; weights that come from there crawl"
    return (Check("swap", AREA, level, measured, "less than half in use", why, fixes),)


def check_swappiness(examined: Examined) -> tuple[Check, ...]:
    """Shown, never asked for: a lower value can harm mapped weights."""
    value = examined.facts.limits.swappiness
    return (
        Check(
            "vm.swappiness",
            AREA,
            Level.UNKNOWN if value.value is None else Level.OK,
            shown(value),
            "any; the customary 10 is not asked for",
            "a low value keeps programs in memory at the price of file pages, and mapped weights "
            "are file pages",
        ),
    )


def check_memlock(examined: Examined) -> tuple[Check, ...]:
    """Shown, never asked for: hearth locks nothing."""
    value = examined.facts.memory.memlock_bytes

    def text(limit: int) -> str:
        return "unlimited" if limit == UNLIMITED else format_bytes(limit)

    return (
        Check(
            "memlock",
            AREA,
            Level.UNKNOWN if value.value is None else Level.OK,
            shown(value, text),
            "any",
            "the limit for locked memory; hearth locks none",
        ),
    )


def check_overcommit(examined: Examined) -> tuple[Check, ...]:
    """Strict accounting refuses what would fit."""
    mode = examined.facts.limits.overcommit_memory
    is_strict = mode.value == 2
    level = Level.UNKNOWN if mode.value is None else Level.WARN if is_strict else Level.OK
    return (
        Check(
            "vm.overcommit_memory",
            AREA,
            level,
            shown(mode),
            "0 or 1; left alone otherwise, no gain is known",
            "2 refuses address space beyond a limit, although it would never be touched",
            (Fix("shell", "sudo sysctl -w vm.overcommit_memory=0"),) if is_strict else (),
        ),
    )
