"""All checks in the order of the table, and the report that `hearth doctor --json` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hearth.host.checks import capacity, gpu, limits, measured, memory, pressure, processor, storage
from hearth.host.checks.check import Check, CheckFunction, Examined, Level, worst
from hearth.host.checks.versions import check_versions
from hearth.host.facts.report import HostFacts
from hearth.host.profile import MachineProfile

REPORT_SCHEMA = 1

CHECKS: tuple[CheckFunction, ...] = (
    capacity.check_plan,
    capacity.check_customary,
    capacity.check_wsl,
    processor.check_kernels,
    processor.check_usable_cores,
    processor.check_core_kinds,
    processor.check_numa,
    processor.check_governor,
    memory.check_huge_pages,
    memory.check_swap,
    memory.check_swappiness,
    memory.check_memlock,
    memory.check_overcommit,
    storage.check_model_disk,
    storage.check_bcache,
    storage.check_readahead,
    capacity.check_disk_space,
    measured.check_measured,
    limits.check_open_files,
    limits.check_file_max,
    limits.check_backlog,
    limits.check_map_count,
    pressure.check_stalls,
    pressure.check_io_wait,
    pressure.check_disk_answers,
    gpu.check_gpus,
    check_versions,
)


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What `hearth doctor --json` writes; stable within a `schema`, as the facts are."""

    schema: int
    verdict: Level  # the worst level of all checks
    checks: tuple[Check, ...]
    facts: HostFacts
    measured: MachineProfile | None = None


def examine(examined: Examined) -> DoctorReport:
    """Runs all checks."""
    checks = tuple(check for function in CHECKS for check in function(examined))
    return DoctorReport(REPORT_SCHEMA, worst(checks), checks, examined.facts, examined.profile)


def report_json_schema() -> dict[str, Any]:
    """The JSON Schema of a report, the facts included."""
    return msgspec.json.schema(DoctorReport)
