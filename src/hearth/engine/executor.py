"""Chooses and builds the executor; every choice comes with its reason.

The backends are imported here and only when chosen: the C++ library loads in a millisecond, torch
takes a second and is an extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from hearth.core.config import Choice, DeviceConfig, EngineConfig
from hearth.core.errors import KernelError
from hearth.core.step import Executor
from hearth.engine.engine import EngineShape
from hearth.kernels.packing import WeightSink
from hearth.models.loader import LoadedSpec
from hearth.models.weights import LoadReport, load_weights

LoadProgress: TypeAlias = Callable[[int, int], None]
Fill: TypeAlias = Callable[[WeightSink], LoadReport]

INSTALL_HINT = (
    "pip install 'hearth[torch]', or install g++ (apt-get install g++) and install hearth again"
)


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend runs the steps; `warning` is what the user must see, or empty."""

    name: str  # cpu, reference
    reason: str
    warning: str = ""


@dataclass(frozen=True, slots=True)
class CreatedExecutor:
    """An executor with its weights loaded, what was chosen meanwhile, and what was warned of."""

    executor: Executor
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]


def choose_backend(device: DeviceConfig) -> BackendChoice:
    """The C++ kernels where they are built, else the torch reference with a warning.

    Loads the kernel library, nothing else. Raises KernelError when neither can be had.
    """
    if device.executor == "reference":
        _require_torch("--executor is reference")
        warning = "the reference executor is slow, and not bit-identical between batches"
        return BackendChoice("reference", "--executor", warning)
    try:
        from hearth.kernels.cpu.library import load_library

        load_library()
    except (KernelError, ImportError) as error:
        if device.executor == "cpu":
            raise
        _require_torch(str(error))
        warning = (
            f"serving with the torch reference executor: slower, and not bit-identical between "
            f"batches ({error})"
        )
        return BackendChoice("reference", f"no C++ kernels: {error}", warning)
    reason = "--executor" if device.executor == "cpu" else "the C++ kernels are built"
    return BackendChoice("cpu", reason)


def create_executor(
    backend: BackendChoice,
    loaded: LoadedSpec,
    config: EngineConfig,
    shape: EngineShape,
    threads: int,
    on_progress: LoadProgress,
) -> CreatedExecutor:
    """Allocates and fills the weights, then builds the executor; memory was planned before.

    Raises WeightsError, CapacityError, KernelError.
    """
    model = config.model

    def fill(sink: WeightSink) -> LoadReport:
        return load_weights(loaded, sink, model.load_format, model.seed, on_progress)

    if backend.name == "cpu":
        return _create_cpu(loaded, config, shape, threads, fill, on_progress)
    return _create_reference(loaded, shape, threads, fill)


def _create_cpu(
    loaded: LoadedSpec,
    config: EngineConfig,
    shape: EngineShape,
    threads: int,
    fill: Fill,
    on_progress: LoadProgress,
) -> CreatedExecutor:
    from hearth.engine.weight_cache import load_cpu_weights, pack_to_memory
    from hearth.kernels.cpu.executor import CpuExecutor

    if config.model.load_format == "dummy":
        load = pack_to_memory(loaded.program, fill, "--load-format is dummy")
    else:
        load = load_cpu_weights(loaded, config.weight_cache, fill, on_progress)
    executor = CpuExecutor(loaded.program, load.weights, shape.limits, shape.kv, threads)
    return CreatedExecutor(executor, (load.choice,), load.warnings)


def _create_reference(
    loaded: LoadedSpec, shape: EngineShape, threads: int, fill: Fill
) -> CreatedExecutor:
    import torch

    from hearth.kernels.reference.executor import ReferenceExecutor
    from hearth.kernels.reference.weights import ReferenceWeights

    torch.set_num_threads(threads)
    weights = ReferenceWeights(loaded.program)
    report = fill(weights)
    executor = ReferenceExecutor(loaded.program, weights, shape.limits, shape.kv)
    return CreatedExecutor(executor, (), report.warnings)


def _require_torch(why: str) -> None:
    """Raises KernelError when torch is not installed; does not import it."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise KernelError(f"{why}, and torch is not installed", hint=INSTALL_HINT)
