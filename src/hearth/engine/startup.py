"""From an EngineConfig to a running engine: resolves what is automatic, plans memory, loads.

The order keeps failures early: settings and config.json (milliseconds), memory plan, then weights.
Every automatic value ends up in `Resolved.choices` with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hearth.core.config import Choice, EngineConfig, Resolved
from hearth.core.units import format_count
from hearth.engine.engine import Engine, EngineShape
from hearth.engine.executor import BackendChoice, choose_backend, create_executor
from hearth.engine.messages import Ready
from hearth.engine.settings import check_settings
from hearth.host.cpu import UsableCores, read_usable_cores
from hearth.host.fit import Fit, FitRequest, fit
from hearth.host.memory import read_memory
from hearth.models.loader import LoadedSpec, load_model_spec

ReportProgress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class StartedEngine:
    """A running engine and the news of it for the front end."""

    engine: Engine
    ready: Ready


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
    loaded = load_model_spec(config.model.path, config.model.dtype)
    timer.end("config")
    backend = choose_backend(config.device)
    threads = _choose_threads(config)
    fitted = fit(_fit_request(config, loaded, threads.count), read_memory())
    # Frequencies of some RoPE scalings depend on the context that is served; no size does.
    loaded = loaded.at_length(fitted.limits.max_model_len)
    timer.end("plan")
    shape = EngineShape(fitted.limits, fitted.kv)
    created = create_executor(
        backend,
        loaded,
        config,
        shape,
        threads.count,
        lambda done, total: report("weights", done, total),
    )
    timer.end("weights")
    engine = Engine(config, created.executor, shape)
    warnings = (*loaded.warnings, *created.warnings, *filter(None, (backend.warning,)))
    choices = (*_choices(loaded, backend, threads), *created.choices)
    resolved = _resolve(config, loaded, fitted, choices, warnings)
    timer.end("engine")
    ready = Ready(
        resolved=resolved,
        executor=created.executor.info,
        memory=tuple(fitted.plan.lines()),
        timings_s=timer.timings_s,
        generation=loaded.generation,
    )
    return StartedEngine(engine, ready)


def _fit_request(config: EngineConfig, loaded: LoadedSpec, num_threads: int) -> FitRequest:
    return FitRequest(
        program=loaded.program,
        dtype=loaded.dtype,
        max_position_embeddings=loaded.spec.max_position_embeddings,
        block_size=config.cache.block_size,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_model_len=config.model.max_model_len,
        kv_memory_bytes=config.cache.memory_bytes,
        num_threads=num_threads,
    )


def _choose_threads(config: EngineConfig) -> UsableCores:
    """As asked, else one a physical core that may be used."""
    if config.device.threads is not None:
        return UsableCores(config.device.threads, "--threads")
    return read_usable_cores()


def _choices(
    loaded: LoadedSpec, backend: BackendChoice, threads: UsableCores
) -> tuple[Choice, ...]:
    return (
        Choice("dtype", str(loaded.dtype), loaded.dtype_reason),
        Choice("executor", backend.name, backend.reason),
        Choice("threads", format_count(threads.count), threads.reason),
    )


def _resolve(
    config: EngineConfig,
    loaded: LoadedSpec,
    fitted: Fit,
    choices: tuple[Choice, ...],
    warnings: tuple[str, ...],
) -> Resolved:
    return Resolved(
        model_name=Path(config.model.path).resolve().name,
        architecture=loaded.spec.architecture,
        dtype=str(loaded.dtype),
        max_model_len=fitted.limits.max_model_len,
        vocab_size=loaded.program.vocab_size,
        eos_token_ids=loaded.generation.eos_token_ids,
        choices=(*choices, *fitted.choices),
        warnings=(*warnings, *fitted.plan.warnings),
    )


def _process_start() -> float:
    """When this process started, in seconds of CLOCK_BOOTTIME (proc(5): field 22, in ticks)."""
    import os

    try:
        text = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
