"""From an EngineConfig to a running engine: resolves what is automatic, plans memory, loads.

The order keeps failures early: settings and config.json (milliseconds), memory plan, then weights.
Every automatic value ends up in `Resolved.choices` with its reason.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hearth.core.config import Choice, EngineConfig, Resolved
from hearth.core.errors import ConfigError, HearthError
from hearth.core.step import Executor, ExecutorInfo
from hearth.core.units import format_count
from hearth.engine.canary import check_canary
from hearth.engine.encoding import Encoding
from hearth.engine.engine import Engine, EngineShape
from hearth.engine.executor import BackendChoice, LoadedModel, choose_backend, create_executor
from hearth.engine.messages import Ready
from hearth.engine.outlook import expected_speed
from hearth.engine.planning import plan_model
from hearth.engine.quality_store import QualityNote, find_quality
from hearth.engine.settings import check_settings
from hearth.engine.speculation.drafter import NgramDrafter
from hearth.host.core_lease import CoreLease, open_leases
from hearth.host.fit import Fit
from hearth.host.memory_policy import prefer_node
from hearth.host.numa import ONE_NODE
from hearth.host.placement import Placement, place_threads
from hearth.host.profile import age_of, load_profile, machine_name, profile_path
from hearth.models.loader import LoadedSpec

if TYPE_CHECKING:
    from hearth.engine.outliers import OutlierProbe

logger = logging.getLogger("hearth.engine")

ReportProgress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class StartedEngine:
    """A running engine and the news of it for the front end.

    `lease`: the cores that it has taken, as long as this object lives; None: none.
    """

    engine: Engine
    ready: Ready
    lease: CoreLease | None = None


class PhaseTimer:
    """Seconds of each phase of the start-up, the first one from the process's start."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}
        self._last = _process_start()

    def end(self, phase: str) -> None:
        """The phase that has just ended."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.timings_s[phase] = round(now - self._last, 4)
        self._last = now


def start(config: EngineConfig, report: ReportProgress) -> StartedEngine:
    """Builds the engine that `config` describes. Raises any HearthError."""
    timer = PhaseTimer()
    timer.end("python")
    check_settings(config)
    backend = choose_backend(config.device, Path(config.model.path), may_use_gpu=True)
    _check_backend(config, backend)
    placed = _place(backend, config)
    placement, node_warnings = _stay_on_node(placed.placement, config)
    node_warnings = (*placement.warnings, *node_warnings)
    planned = plan_model(backend, config, placement.num_threads)
    timer.end("plan")
    loaded, fitted = planned.loaded, planned.fitted
    # Frequencies of some RoPE scalings depend on the context that is served; no size does.
    loaded = loaded.at_length(fitted.limits.max_model_len)
    images = planned.images(config)
    shape = EngineShape(fitted.limits, fitted.kv)
    created = create_executor(
        backend,
        loaded,
        config,
        shape,
        placement,
        lambda done, total: report("weights", done, total),
        images.max_patches if images else 0,
    )
    timer.end("weights")
    quality = find_quality(loaded, config, created.rounding)
    checked = _check_canary(config, loaded, created.executor, shape, quality)
    timer.end("canary")
    speculation = _choose_speculation(config, created.executor.info)
    drafter = NgramDrafter() if speculation.value == "ngram" else None
    encoding = None
    if images is not None and created.encoder is not None:
        encoding = Encoding(created.encoder, images.processor, config.images.cache_bytes)
    engine = Engine(config, created.executor, shape, drafter=drafter, encoding=encoding)
    window = _window_note(config, fitted.limits.max_model_len)
    notes = (backend.warning, window.warning if window else "", *checked.warnings)
    warnings = (*node_warnings, *loaded.warnings, *created.warnings, *filter(None, notes))
    windows = (window.choice,) if window else ()
    own = _choices(loaded, backend, placement)
    notes_of_quality = (quality.choice,) if quality.choice else ()
    choices = (*own, *windows, *planned.choices, *notes_of_quality, *created.choices, speculation)
    choices = (*choices, checked.choice)
    if backend.name == "cpu":
        choices = (*choices, *_expected_speed(loaded, config, placement))
    resolved = replace(
        _resolve(config, loaded, fitted, choices, warnings),
        images=images,
        quality=quality.summary,
        rounding=created.rounding,
    )
    _log_degraded(backend)
    timer.end("engine")
    ready = Ready(
        resolved=resolved,
        executor=created.executor.info,
        memory=tuple(fitted.plan.lines()),
        timings_s=timer.timings_s,
        generation=loaded.generation,
    )
    return StartedEngine(engine, ready, placed.lease)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What the banner says of the canary, and what the user is warned of."""

    choice: Choice
    warnings: tuple[str, ...] = ()


def _check_canary(
    config: EngineConfig,
    loaded: LoadedModel,
    executor: Executor,
    shape: EngineShape,
    quality: QualityNote,
) -> _Checked:
    """Refuses a model that gives garbage. Raises CanaryError."""
    if not config.canary:
        return _Checked(Choice("canary", "off", "--no-canary: nothing was tried before serving"))
    is_dummy = config.model.load_format == "dummy"
    checkpoint = loaded if isinstance(loaded, LoadedSpec) and not is_dummy else None
    probe = _probe_of(executor)
    try:
        choice = check_canary(executor, shape, quality.summary, checkpoint, probe)
    except HearthError:
        executor.close()
        raise
    return _Checked(choice, () if probe is None else probe.warnings())


def _probe_of(executor: Executor) -> OutlierProbe | None:
    """For the C++ kernels, whose steps can be run in parts."""
    if executor.info.name != "cpu":
        return None
    from hearth.engine.outliers import OutlierProbe
    from hearth.kernels.cpu.executor import CpuExecutor

    return OutlierProbe(executor) if isinstance(executor, CpuExecutor) else None


@dataclass(frozen=True, slots=True)
class _Placed:
    placement: Placement
    lease: CoreLease | None


def _place(backend: BackendChoice, config: EngineConfig) -> _Placed:
    """Chooses cores beside those of other servers, and takes them. Raises ConfigError.

    Threads of other libraries are not bound, and take none.
    """
    device = config.device
    if backend.name != "cpu":
        return _Placed(place_threads("none", device.threads, device.numa), None)
    with open_leases() as leases:
        others = leases.others()
        placement = place_threads(device.cpu_bind, device.threads, device.numa, others=others)
        for warning in placement.warnings:
            logger.warning("cores_shared %s", warning)
        return _Placed(placement, leases.claim(placement.taken))


def _stay_on_node(placement: Placement, config: EngineConfig) -> tuple[Placement, tuple[str, ...]]:
    """This process, and what it starts, on the placement's CPUs and in the memory of its node.

    What nobody asked for is left out with a warning where Linux refuses it (containers often may
    not choose a memory policy); else ConfigError.
    """
    memory = placement.memory
    if memory is None or memory.node is None:
        return placement, _stay_on(placement.process_cpus)
    try:
        os.sched_setaffinity(0, placement.process_cpus or memory.cpus)
        prefer_node(memory.node)
    except (OSError, ConfigError) as error:
        if config.device.numa != "auto":
            raise ConfigError(f"--numa {memory.node}: {error}", param="numa") from error
        reason = f"on the cores of node {memory.node}; Linux refuses to prefer its memory here"
        refused = replace(memory, node=None, reason=reason)
        return replace(placement, memory=refused), (f"memory is not bound to a node: {error}",)
    return placement, ()


def _stay_on(cpus: frozenset[int]) -> tuple[str, ...]:
    """Confines this process; warnings where Linux refuses it."""
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
    except OSError as error:
        return (f"the process is not confined to its cores: {error}",)
    return ()


def _check_backend(config: EngineConfig, backend: BackendChoice) -> None:
    """Some settings concern the C++ kernels. Raises ConfigError where others run the model."""
    if backend.name == "cpu":
        return
    runs = f"{backend.name} is what runs the model ({backend.reason})"
    if config.device.isa != "auto":
        raise ConfigError(
            f"--isa (HEARTH_ISA) {config.device.isa} chooses among the C++ kernels, and {runs}",
            param="isa",
            hint="leave it out",
        )
    if config.device.cpu_bind not in {"auto", "none"}:
        raise ConfigError(
            f"--cpu-bind {config.device.cpu_bind} places threads of the C++ kernels, and {runs}",
            param="cpu_bind",
            hint="leave it out; taskset binds the whole server",
        )
    if backend.name == "triton":
        if config.model.codes.activations not in {"auto", "float32"}:
            raise ConfigError(
                f"--activations is {config.model.codes.activations}: rows of int8 are for the C++ "
                f"kernels, and {runs}",
                param="activations",
                hint="leave it out",
            )
        return
    if config.model.quantize not in {"none", "auto"}:
        raise ConfigError(
            f"--quantize {config.model.quantize} needs the C++ kernels, and {runs}",
            param="quantize",
            hint="leave --quantize out",
        )


def _choose_speculation(config: EngineConfig, executor: ExecutorInfo) -> Choice:
    """Drafts where an answer cannot depend on them: with rows that do not feel their company."""
    asked = config.speculation.method
    if asked == "off":
        return Choice("speculation", "off", "--speculative")
    if asked == "ngram":
        differs = "" if executor.bit_identical else f"; {executor.name} rounds batches otherwise"
        return Choice("speculation", "ngram", f"--speculative{differs}")
    if not executor.bit_identical:
        reason = f"with {executor.name} a token's logits depend a little on how many are computed"
        return Choice("speculation", "off", reason)
    reason = "what a text repeats is drafted where that pays, and verified: answers stay the same"
    return Choice("speculation", "ngram", reason)


@dataclass(frozen=True, slots=True)
class _WindowNote:
    """What the banner says of --window."""

    choice: Choice
    warning: str


def _expected_speed(
    loaded: LoadedModel, config: EngineConfig, placement: Placement
) -> tuple[Choice, ...]:
    """What one stream is expected to get, where this machine has been measured."""
    if not isinstance(loaded, LoadedSpec):
        return ()
    from hearth.kernels.cpu.library import resolve_isa

    machine = machine_name(resolve_isa(config.device.isa), placement)
    profile = load_profile(profile_path(), machine)
    if profile is None or profile.speeds is None:
        return ()
    speed = expected_speed(loaded, config, profile.speeds)
    if speed is None:
        return ()
    reason = f"speeds of this machine's kernels, measured {age_of(profile, time.time())}"
    return (Choice("expected speed", speed, f"{reason}: hearth plan"),)


def _window_note(config: EngineConfig, max_model_len: int) -> _WindowNote | None:
    """None without --window."""
    window = config.model.window
    if window is None:
        return None
    shown = f"{format_count(window)} tokens"
    if window >= max_model_len:
        warning = f"--window {window} has no effect: the context is {format_count(max_model_len)}"
        return _WindowNote(
            Choice("window", shown, "--window, no shorter than the context"), warning
        )
    warning = (
        f"--window: every layer sees the last {shown} only; a text longer than that is answered "
        "worse than by the model as it was trained, and what lies further back is forgotten"
    )
    reason = "--window: bounds the KV cache of a sequence; blocks behind it are freed"
    return _WindowNote(Choice("window", shown, reason), warning)


def _log_degraded(backend: BackendChoice) -> None:
    if backend.warning:
        logger.warning("engine_degraded executor=%s %s", backend.name, backend.warning)


def _choices(
    loaded: LoadedModel, backend: BackendChoice, placement: Placement
) -> tuple[Choice, ...]:
    return (
        Choice("dtype", str(loaded.dtype), loaded.dtype_reason),
        Choice("executor", backend.name, backend.reason),
        Choice("threads", format_count(placement.num_threads), placement.threads_reason),
        *_node_choice(placement),
    )


def _node_choice(placement: Placement) -> tuple[Choice, ...]:
    """Nothing where there is but one node and nobody has asked."""
    memory = placement.memory
    if memory is None or (memory.node is None and memory.reason == ONE_NODE):
        return ()
    shown = "all nodes" if memory.node is None else f"node {memory.node}"
    return (Choice("numa", shown, memory.reason),)


def _resolve(
    config: EngineConfig,
    loaded: LoadedModel,
    fitted: Fit,
    choices: tuple[Choice, ...],
    warnings: tuple[str, ...],
) -> Resolved:
    return Resolved(
        model_name=Path(config.model.path).resolve().name,
        architecture=loaded.architecture,
        dtype=str(loaded.dtype),
        max_model_len=fitted.limits.max_model_len,
        vocab_size=loaded.program.vocab_size,
        eos_token_ids=loaded.generation.eos_token_ids,
        choices=(*choices, *fitted.choices),
        warnings=(*warnings, *fitted.plan.warnings),
        planned_bytes=fitted.plan.total_bytes,
        kv_cache_dtype=str(fitted.kv.dtype),
    )


def _process_start() -> float:
    """When this process started, in seconds of CLOCK_BOOTTIME (proc(5): field 22, in ticks)."""
    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
