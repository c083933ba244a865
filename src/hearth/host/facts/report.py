"""HostFacts: all areas together, to JSON and back.

The JSON's layout is stable within a `schema` number: fields are added, never renamed, moved or
removed, without a new one. `docs/doctor.schema.json` has its JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hearth.core.errors import ConfigError
from hearth.host.facts.cpu import CpuFacts, read_cpu
from hearth.host.facts.disks import StorageFacts, read_storage
from hearth.host.facts.gpu import GpuFacts, read_gpu
from hearth.host.facts.limits import LimitFacts, read_limits
from hearth.host.facts.memory import MemoryFacts, read_memory_facts
from hearth.host.facts.numa import NumaFacts, read_numa
from hearth.host.facts.platform import PlatformFacts, read_platform
from hearth.host.facts.pressure import Counters, PressureFacts, read_pressure
from hearth.host.facts.software import SoftwareFacts, read_software

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything that was read. `storage`: of the directory that holds, or will hold, models."""

    schema: int
    cpu: CpuFacts
    numa: NumaFacts
    memory: MemoryFacts
    gpu: GpuFacts
    storage: StorageFacts
    limits: LimitFacts
    pressure: PressureFacts
    platform: PlatformFacts
    software: SoftwareFacts


def read_host(
    models: Path,
    root: Path = Path("/"),
    *,
    nvml: Any | None = None,
    earlier: Counters | None = None,
    environment: Mapping[str, str] | None = None,
) -> HostFacts:
    """Reads all areas. `models`: the directory whose storage is described; see the readers."""
    return HostFacts(
        schema=SCHEMA,
        cpu=read_cpu(root),
        numa=read_numa(root),
        memory=read_memory_facts(root),
        gpu=read_gpu(nvml),
        storage=read_storage(models, root),
        limits=read_limits(root),
        pressure=read_pressure(root, earlier),
        platform=read_platform(root, environment),
        software=read_software(root, environment=environment),
    )


def to_json(facts: HostFacts) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(facts)


def from_json(data: bytes) -> HostFacts:
    """The facts of `to_json`. Raises ConfigError for another schema, and what is none."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema != SCHEMA:
            raise ConfigError(
                f"the facts have schema {head.schema}; this version reads {SCHEMA}",
                hint="write them with `hearth doctor --json` of this version",
            )
        return msgspec.json.decode(data, type=HostFacts)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"these are no facts of hearth doctor: {error}") from error


@dataclass(frozen=True, slots=True)
class _Head:
    schema: int
