"""The report of `hearth plan`: a table over precisions, where the memory goes, and the speeds."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from hearth.cli.described import Described, described
from hearth.cli.measure import known_profile, measure_machine
from hearth.cli.plan import PlanFlags
from hearth.cli.quantity import parse_quantity
from hearth.cli.storage import storage_directory
from hearth.core.config import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ImagesConfig,
    ModelConfig,
    SchedulerConfig,
)
from hearth.core.errors import ConfigError, UnreachableError
from hearth.core.units import MIB, format_bytes, format_count
from hearth.engine.executor import BackendChoice, choose_backend
from hearth.engine.kv_storage import kv_choice
from hearth.engine.outlook import Load, Outlook, Site, describe_load, outlooks, spec_of
from hearth.engine.phone_plan import LATER_STEP, PhoneStep, phone_steps
from hearth.engine.planning import fit_request
from hearth.host.facts.gpu import read_gpu
from hearth.host.memory import HostMemory, MemoryFact, read_memory
from hearth.host.placement import Placement, place_threads
from hearth.host.profile import MachineProfile, age_of
from hearth.kernels.cpu.library import resolve_isa
from hearth.models.loader import LoadedSpec
from hearth.models.stored_weights import StoredWeights, stored_weights

if TYPE_CHECKING:
    from rich.table import Table

    from hearth.hub.describe import Description

DEFAULT_CONTEXT = 8192
LEAST_MEMORY_BYTES = 64 * MIB
_SCHEDULER = SchedulerConfig()
UNKNOWN_SPEED = "not known: run with --measure (some 20 s)"


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Everything that is said, with its units in the names."""

    model: str
    architecture: str
    num_parameters: int
    memory: str
    available_bytes: int
    load: Load
    outlooks: tuple[Outlook, ...]
    speeds: str
    phone: tuple[PhoneStep, ...]
    target_step_s: float | None
    notes: tuple[str, ...]
    kv_cache_dtype: str = ""  # how keys and values are stored
    download: Description | None = None  # of a model that is on a hub
    stored: StoredWeights | None = None  # None: no weights' headers could be read


def make_report(flags: PlanFlags) -> PlanReport:
    """Raises ModelError, ModelNotFoundError, ConfigError, KernelError, and RemoteError of a hub."""
    with described(flags.model, flags.source) as found:
        return replace(_report_of(found, flags), download=found.remote)


def _report_of(found: Described, flags: PlanFlags) -> PlanReport:
    directory = found.directory
    config = EngineConfig(
        model=ModelConfig(path=str(directory)),
        device=DeviceConfig(flags.threads, "auto", flags.isa, flags.cpu_bind),
        scheduler=SchedulerConfig(max_num_seqs=max(_SCHEDULER.max_num_seqs, flags.concurrency)),
        images=ImagesConfig(max_pixels=flags.max_pixels),
        cache=CacheConfig(dtype=flags.kv_cache_dtype),
    )
    backend = choose_backend(config.device, directory)
    if backend.name == "automodel":
        raise ConfigError(
            f"hearth plan knows what hearth's own kernels run, and this model is served through "
            f"transformers ({backend.reason})",
            hint="hearth serve plans its memory when it starts",
        )
    placement = place_threads(flags.cpu_bind, flags.threads, flags.numa)
    loaded = spec_of(backend, config, "none")
    load = _load(flags, loaded)
    weights = _weights(found, loaded)
    profile = _profile(flags, placement, directory if found.is_here else storage_directory(None))
    speeds = profile.speeds if profile is not None else None
    site = Site(backend, placement.num_threads, _memory(flags), speeds, _gpus(flags))
    steps: tuple[PhoneStep, ...] = ()
    if speeds is not None:
        steps = phone_steps(backend, config, speeds, flags.target_step_s)
    slots = loaded.program.slots + (loaded.encoder.program.slots if loaded.encoder else ())
    unique = {slot.name: slot for slot in slots}.values()
    return PlanReport(
        model=flags.model,
        architecture=loaded.architecture,
        num_parameters=sum(slot.total_rows * max(1, slot.cols) for slot in unique),
        memory=site.memory.describe(),
        available_bytes=site.memory.available_bytes,
        load=load,
        outlooks=outlooks(config, site, load),
        speeds=_describe_speeds(profile),
        phone=steps,
        target_step_s=flags.target_step_s,
        notes=(*loaded.warnings, *weights.notes),
        kv_cache_dtype=_describe_kv(backend, config, loaded),
        stored=weights.stored,
    )


def _describe_kv(backend: BackendChoice, config: EngineConfig, loaded: LoadedSpec) -> str:
    """`int8, 20.6 KiB a token (…)`. Raises ConfigError for what the model cannot have."""
    request = fit_request(backend, config, loaded, 1)
    choice = kv_choice(config, loaded, request)
    return f"{choice.value} ({choice.reason})"


@dataclass(frozen=True, slots=True)
class _Weights:
    stored: StoredWeights | None
    notes: tuple[str, ...]


def _weights(found: Described, loaded: LoadedSpec) -> _Weights:
    """What the headers say; a plan needs them not, so that a hub's silence is a note.

    Raises WeightsError, and what a hub refuses.
    """
    try:
        checkpoint = found.read_weights()
    except UnreachableError as error:
        note = f"the weights' headers could not be read, sizes are config.json's: {error.message}"
        return _Weights(None, (note,))
    if checkpoint is None:
        return _Weights(None, ())
    stored = stored_weights(loaded, checkpoint)
    return _Weights(stored, stored.notes)


def _load(flags: PlanFlags, loaded: LoadedSpec) -> Load:
    most = loaded.max_position_embeddings
    context = flags.context or min(DEFAULT_CONTEXT, most)
    if context > most:
        raise ConfigError(
            f"--max-model-len is {format_count(context)}, the model's max_position_embeddings is "
            f"{format_count(most)}",
            hint=f"set --max-model-len ≤ {most}",
        )
    return Load(context, flags.concurrency, min(flags.prompt_tokens, context))


def _memory(flags: PlanFlags) -> HostMemory:
    if flags.memory is None:
        return read_memory()
    return HostMemory((MemoryFact(_checked("memory", flags.memory), "--memory"),))


def _gpus(flags: PlanFlags) -> tuple[int, ...]:
    """Bytes of each GPU, as asked for or as the driver tells. Raises ConfigError."""
    if not flags.gpu_memory:
        gpus = read_gpu().gpus.value or ()
        return tuple(gpu.free_bytes.value or 0 for gpu in gpus)
    try:
        sizes = [parse_quantity(part) for part in flags.gpu_memory.split(",")]
    except ValueError as error:
        raise ConfigError(f"--gpu-memory: {error}", param="gpu_memory") from error
    return tuple(_checked("gpu_memory", size) for size in sizes)


def _checked(param: str, num_bytes: int) -> int:
    """What is too small for any model was meant in another unit. Raises ConfigError."""
    if num_bytes >= LEAST_MEMORY_BYTES:
        return num_bytes
    raise ConfigError(
        f"--{param.replace('_', '-')} is {format_bytes(num_bytes)}, and no model fits into less "
        f"than {format_bytes(LEAST_MEMORY_BYTES)}",
        param=param,
        hint=f"a number alone is bytes: {num_bytes}GiB" if num_bytes < 4096 else None,
    )


def _profile(flags: PlanFlags, placement: Placement, directory: Path) -> MachineProfile | None:
    """What is known of this machine's speeds, measured now where that was asked for."""
    isa = resolve_isa(flags.isa)
    if flags.measure:
        return measure_machine(isa, placement, directory)
    return known_profile(isa, placement)


def _describe_speeds(profile: MachineProfile | None) -> str:
    if profile is None or profile.speeds is None:
        return UNKNOWN_SPEED
    speeds = profile.speeds
    rates = ", ".join(precision.describe() for precision in speeds.precisions)
    age = age_of(profile, time.time())
    return f"{speeds.source}, {age}: weights are read at {rates}"


def write_json(report: PlanReport, out: TextIO) -> None:
    """One object."""
    out.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")


def write_text(report: PlanReport, out: TextIO) -> None:
    """For people: tables on a terminal and in a pipe alike."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=out, highlight=False, width=None if out.isatty() else 140)
    console.print(
        f"{report.model}: {report.architecture}, {format_count(report.num_parameters)} parameters"
    )
    if report.download is not None:
        size = format_bytes(report.download.download_bytes)
        where = f"{report.download.source}, commit {report.download.commit[:12]}"
        console.print(f"to download: {size} from {where}")
    if report.stored is not None:
        console.print(_stored_line(report.stored))
    console.print(f"asked for: {describe_load(report.load)}")
    console.print(f"KV cache: {report.kv_cache_dtype}")
    console.print(f"memory: {report.memory}")
    console.print(f"speeds: {report.speeds}")
    table = Table(box=box.SIMPLE, pad_edge=False, title="by precision", title_justify="left")
    for name in ("precision", "weights", "other", "KV cache", "in all", "verdict"):
        table.add_column(name, justify="left" if name in {"precision", "verdict"} else "right")
    for name in ("context ≤", "sequences ≤", "tokens/s", "first token", "image"):
        table.add_column(name, justify="right")
    for outlook in report.outlooks:
        table.add_row(*_cells(outlook))
    console.print(table)
    for line in _where(report):
        console.print(line)
    for line in _device_lines(report):
        console.print(line)
    if report.phone and any(outlook.fits for outlook in report.outlooks):
        console.print(_phone_table(report))
    if report.target_step_s is not None:
        console.print(_target_line(report, report.target_step_s))
    for note in report.notes:
        console.print(f"note: {note}")


def _stored_line(stored: StoredWeights) -> str:
    """The weights on the disk, or those that would lie there."""
    sizes = (f"{dtype} {format_bytes(num_bytes)}" for dtype, num_bytes in stored.dtypes.items())
    plural = "s" if stored.num_files != 1 else ""
    return (
        f"weights as stored: {', '.join(sizes)}; {format_count(stored.num_tensors)} tensors in "
        f"{stored.num_files} file{plural}, every one that is needed is there in its shape"
    )


def _cells(outlook: Outlook) -> tuple[str, ...]:
    fixed = outlook.total_bytes - outlook.kv_bytes
    weights = next(item.num_bytes for item in outlook.items if item.name == "weights")
    times = outlook.times
    speed = (
        ("?", "?", "?")
        if times is None or times.missing
        else (
            times.rate(),
            _seconds(times.first_token_s),
            "" if times.image_s is None else f"+ {_seconds(times.image_s)}",
        )
    )
    return (
        outlook.stored_as,
        format_bytes(weights),
        format_bytes(fixed - weights),
        format_bytes(outlook.kv_bytes),
        format_bytes(outlook.total_bytes),
        outlook.verdict,
        format_count(outlook.longest_context),
        format_count(outlook.most_sequences),
        *speed,
    )


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _where(report: PlanReport) -> list[str]:
    """Where the memory goes, of the most exact precision that fits, or of the smallest."""
    fitting = [outlook for outlook in report.outlooks if outlook.fits]
    outlook = fitting[0] if fitting else report.outlooks[-1]
    lines = [
        f"{outlook.stored_as}, the most exact that fits:"
        if fitting
        else f"fits in no precision; {outlook.stored_as}:"
    ]
    lines += [f"  {i.name}: {format_bytes(i.num_bytes)} = {i.reason}" for i in outlook.items]
    return [*lines, f"  KV cache: {format_bytes(outlook.kv_bytes)} = {describe_load(report.load)}"]


def _device_lines(report: PlanReport) -> list[str]:
    """Over several devices, where there are GPUs."""
    mapped = [outlook for outlook in report.outlooks if outlook.device_map]
    if not mapped:
        return []
    lines = ["over devices (for sizing: this version computes on the CPU):"]
    for outlook in mapped:
        shown = "; ".join(one.describe() for one in outlook.device_map)
        lines.append(f"  {outlook.stored_as}: {shown}")
    return lines


def _phone_table(report: PlanReport) -> Table:
    """Seconds of a first and a later step, by pixels and precision."""
    from rich import box
    from rich.table import Table

    fitting = {outlook.scheme: outlook.stored_as for outlook in report.outlooks if outlook.fits}
    title = f"a phone agent's step (first, {LATER_STEP}th; screen of 1080 × 2400)"
    table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left")
    for name in ("--max-pixels", "image tokens", *fitting.values()):
        table.add_column(name, justify="right")
    for pixels in dict.fromkeys(step.max_pixels for step in report.phone):
        row = {s.scheme: s for s in report.phone if s.max_pixels == pixels}
        tokens = format_count(next(iter(row.values())).image_tokens)
        times = (f"{_seconds(row[s].first_s)}, {_seconds(row[s].later_s)}" for s in fitting)
        table.add_row(format_count(pixels), tokens, *times)
    return table


def _target_line(report: PlanReport, target_s: float) -> str:
    """What meets it: with the most pixels, of these the most exact; and up to which context."""
    fitting = {outlook.scheme: outlook for outlook in report.outlooks if outlook.fits}
    steps = [step for step in report.phone if step.scheme in fitting]
    if not steps:
        return "--target-step: nothing is known of this model's steps here"
    met = [step for step in steps if step.later_s <= target_s]
    if met:
        best = max(met, key=lambda step: (step.max_pixels, -steps.index(step)))
        up_to = _up_to(best, fitting[best.scheme].longest_context)
        return f"a step takes {target_s:g} s or less with {_settings(best)}; {up_to}"
    fastest = min(steps, key=lambda step: step.later_s)
    shown = (
        f"no {LATER_STEP}th step takes {target_s:g} s or less; the fastest: {_settings(fastest)}"
    )
    short = max(steps, key=lambda step: step.longest_context or 0)
    if not short.longest_context:
        return f"{shown}; no later step of any context does"
    up_to = _up_to(short, fitting[short.scheme].longest_context)
    return f"{shown}; with {_flags(short)} shorter ones do: {up_to}"


def _up_to(step: PhoneStep, most_held: int) -> str:
    """Up to which context it holds, and whether memory holds that."""
    longest = step.longest_context or 0
    shown = f"up to a context of {format_count(longest)} tokens, screenshot and answer included"
    if longest <= most_held:
        return shown
    return f"{shown} (the KV cache's share of memory holds {format_count(most_held)})"


def _settings(step: PhoneStep) -> str:
    return f"{_flags(step)}: {_seconds(step.later_s)}, the first {_seconds(step.first_s)}"


def _flags(step: PhoneStep) -> str:
    return f"--quantize {step.scheme} --max-pixels {step.max_pixels}"
