"""Limits of the kernel that a server meets."""

from __future__ import annotations

from hearth.core.units import format_count
from hearth.host.checks.check import Check, Examined, Fix, Level, shown, tune_fix
from hearth.host.facts.limits import UNLIMITED

AREA = "limits"
LEAST_FILES = 4096
CUSTOMARY_FILES = 65536
CUSTOMARY_FILE_MAX = 2097152
LEAST_BACKLOG = 2048
CUSTOMARY_BACKLOG = 65535  # the server's own, beyond which it has no effect
DEFAULT_MAP_COUNT = 65530


def check_open_files(examined: Examined) -> tuple[Check, ...]:
    """One socket a client, some files a model. The hard limit counts: a server takes all of it."""
    limits = examined.facts.limits.process
    soft, hard = limits.nofile_soft, limits.nofile_hard
    known = [fact.value for fact in (soft, hard) if fact.value is not None]
    enough = UNLIMITED in known or max(known, default=0) >= LEAST_FILES
    level = Level.UNKNOWN if not known else Level.OK if enough else Level.WARN
    fixes = (
        # Of the shell that this is typed in: no process can raise its own hard limit.
        Fix("shell", f"sudo prlimit --pid $$ --nofile=:{CUSTOMARY_FILES}"),
        tune_fix("nofile", persist=True),
    )
    return (
        Check(
            "open files",
            AREA,
            level,
            f"{shown(soft, _count)} soft, {shown(hard, _count)} hard",
            f"{format_count(LEAST_FILES)} or more, hard "
            f"(customary {format_count(CUSTOMARY_FILES)})",
            "every connection is an open file: a server that runs out refuses clients; hearth "
            "serve raises its own soft limit to the hard one",
            () if level in {Level.OK, Level.UNKNOWN} else fixes,
        ),
    )


def check_file_max(examined: Examined) -> tuple[Check, ...]:
    """The host's own limit is rarely reached."""
    most, used = examined.facts.limits.file_max, examined.facts.limits.files_in_use
    if most.value is None or used.value is None:
        level = Level.UNKNOWN
    else:
        level = Level.WARN if 5 * used.value > 4 * most.value else Level.OK
    target = CUSTOMARY_FILE_MAX
    fixes: tuple[Fix, ...] = (tune_fix("file-max"),)
    if 2 * (most.value or 0) > target:  # where it is reached, more than that is needed
        target, fixes = 2 * (most.value or 0), ()
    fixes = (Fix("shell", f"sudo sysctl -w fs.file-max={target}"), *fixes)
    return (
        Check(
            "fs.file-max",
            AREA,
            level,
            f"{shown(used, format_count)} of {shown(most, format_count)} in use",
            "at most 80 % in use",
            "beyond it no process of the host can open a file",
            fixes if level is Level.WARN else (),
        ),
    )


def check_backlog(examined: Examined) -> tuple[Check, ...]:
    """Connections that wait to be accepted."""
    value = examined.facts.limits.somaxconn
    level = Level.UNKNOWN if value.value is None else Level.OK
    fixes: tuple[Fix, ...] = ()
    if value.value is not None and value.value < LEAST_BACKLOG:
        level = Level.WARN
        fixes = (
            Fix("shell", "sudo sysctl -w net.core.somaxconn=4096"),
            tune_fix("somaxconn"),
        )
    return (
        Check(
            "net.core.somaxconn",
            AREA,
            level,
            shown(value, format_count),
            f"{format_count(LEAST_BACKLOG)} or more (customary {format_count(CUSTOMARY_BACKLOG)})",
            "a burst of connections beyond it waits for a retry of a second or more",
            fixes,
        ),
    )


def check_map_count(examined: Examined) -> tuple[Check, ...]:
    """Mapped files and arenas."""
    value = examined.facts.limits.max_map_count
    is_low = value.value is not None and value.value < DEFAULT_MAP_COUNT
    level = Level.UNKNOWN if value.value is None else Level.WARN if is_low else Level.OK
    fix = Fix("shell", f"sudo sysctl -w vm.max_map_count={DEFAULT_MAP_COUNT}")
    return (
        Check(
            "vm.max_map_count",
            AREA,
            level,
            shown(value, format_count),
            f"{format_count(DEFAULT_MAP_COUNT)}, the kernel's default, or more",
            "each shard of a model is a mapping; the default is rarely reached",
            (fix,) if is_low else (),
        ),
    )


def _count(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else format_count(limit)
