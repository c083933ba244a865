"""Chooses and builds the executor; every choice comes with its reason.

The backends are imported here and only when chosen: the C++ library loads in a millisecond, torch
takes a second and is an extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from hearth.core.config import DeviceConfig, ModelConfig
from hearth.core.errors import KernelError
from hearth.core.step import Executor
from hearth.engine.engine import EngineShape
from hearth.kernels.packing import WeightSink
from hearth.models.loader import LoadedSpec
from hearth.models.weights import load_weights

LoadProgress: TypeAlias = Callable[[int, int], None]
Fill: TypeAlias = Callable[[WeightSink], None]

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
    """An executor with its weights loaded, and what the loading warned of."""

    executor: Executor
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
    model: ModelConfig,
    shape: EngineShape,
    threads: int,
    on_progress: LoadProgress,
) -> CreatedExecutor:
    """Allocates and fills the weights, then builds the executor; memory was planned before.

    Raises WeightsError, CapacityError, KernelError.
    """
    warnings: list[str] = []

    def fill(sink: WeightSink) -> None:
        report = load_weights(loaded, sink, model.load_format, model.seed, on_progress)
        warnings.extend(report.warnings)

    build = _build_cpu if backend.name == "cpu" else _build_reference
    executor = build(loaded, shape, threads, fill)
    return CreatedExecutor(executor, tuple(warnings))


def _build_cpu(loaded: LoadedSpec, shape: EngineShape, threads: int, fill: Fill) -> Executor:
    from hearth.kernels.cpu.executor import CpuExecutor
    from hearth.kernels.cpu.weights import CpuWeights

    weights = CpuWeights(loaded.program)
    fill(weights)
    return CpuExecutor(loaded.program, weights, shape.limits, shape.kv, threads)


def _build_reference(loaded: LoadedSpec, shape: EngineShape, threads: int, fill: Fill) -> Executor:
    import torch

    from hearth.kernels.reference.executor import ReferenceExecutor
    from hearth.kernels.reference.weights import ReferenceWeights

    torch.set_num_threads(threads)
    weights = ReferenceWeights(loaded.program)
    fill(weights)
    return ReferenceExecutor(loaded.program, weights, shape.limits, shape.kv)


def _require_torch(why: str) -> None:
    """Raises KernelError when torch is not installed; does not import it."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise KernelError(f"{why}, and torch is not installed", hint=INSTALL_HINT)
