"""Chooses and builds the executor, and loads the model for it; every choice has its reason.

The backends are imported here and only when chosen: the C++ library loads in a millisecond, torch
takes a second and is an extra.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from hearth.core.config import Choice, CodesConfig, DeviceConfig, EngineConfig, ModelConfig
from hearth.core.errors import KernelError
from hearth.core.quality import RoundingLoss
from hearth.core.spec import float_kv
from hearth.core.step import Executor, ImageEncoder
from hearth.engine.engine import EngineShape
from hearth.host.fit import max_logit_rows
from hearth.host.placement import Placement
from hearth.kernels.fuse import ALL_PATTERNS, Pattern
from hearth.kernels.packing import WeightSink
from hearth.models import automodel
from hearth.models.automodel.spec import AutoModelSpec
from hearth.models.config_json import read_config
from hearth.models.families import FAMILIES, named_architecture, unsupported
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import LoadReport, load_weights

logger = logging.getLogger("hearth.engine")

LoadProgress: TypeAlias = Callable[[int, int], None]
Fill: TypeAlias = Callable[[WeightSink], LoadReport]
LoadedModel: TypeAlias = LoadedSpec | AutoModelSpec

GPU_EXECUTORS = ("cuda", "cuda-on-cpu")  # the second for tests

UNTRIED = (
    "its kernels are tested on the CPU and compiled for cards, but have not run on one yet: "
    "compare its answers with --executor cpu"
)
INSTALL_HINT = (
    "pip install 'hearth[torch]', or install g++ (apt-get install g++) and install hearth again"
)


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend runs the steps; `warning` is what the user must see, or empty."""

    name: str  # cpu, triton, reference, automodel
    reason: str
    warning: str = ""


@dataclass(frozen=True, slots=True)
class CreatedExecutor:
    """An executor with its weights loaded, what was chosen meanwhile, and what was warned of."""

    executor: Executor
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    encoder: ImageEncoder | None = None
    rounding: RoundingLoss | None = None  # what codes that were made while loading lose


def choose_backend(
    device: DeviceConfig, model_dir: Path, *, may_use_gpu: bool = False
) -> BackendChoice:
    """What runs the model of a directory.

    transformers where no family file knows its architecture, Triton's kernels where they are asked
    for, else the C++ kernels where they are built, else the torch reference; all but the C++
    kernels with a warning. Reads config.json and loads the kernel library; imports torch where a
    GPU is asked for. `may_use_gpu`: whether to say that there is one. Raises
    UnknownArchitectureError, KernelError, and ConfigError for an instruction set that cannot run.
    """
    config = read_config(model_dir)
    architecture = named_architecture(config)
    if device.executor == "automodel":
        if missing := automodel.missing_packages():
            message = f"--executor is automodel, and {', '.join(missing)} is not installed"
            raise KernelError(message, hint=automodel.INSTALL_HINT)
        return _automodel_choice("--executor")
    if architecture not in FAMILIES:
        if device.executor != "auto":
            hint = "without --executor it is tried through transformers"
            raise unsupported(config, architecture, hint)
        if missing := automodel.missing_packages():
            hint = (
                f"many others are served through transformers: {automodel.INSTALL_HINT} "
                f"(missing: {', '.join(missing)})"
            )
            raise unsupported(config, architecture, hint)
        return _automodel_choice(f"no family file for {architecture}")
    no_gpu = ""
    if device.executor in GPU_EXECUTORS or (may_use_gpu and device.executor == "auto"):
        chosen = _gpu_backend(device)
        if isinstance(chosen, BackendChoice):
            return chosen
        no_gpu = chosen
    return _kernel_backend(device, no_gpu)


def _automodel_choice(reason: str) -> BackendChoice:
    warning = (
        f"served through transformers' own model ({reason}): several times slower than hearth's "
        "kernels, not bit-identical between batches, and the engine process loads torch"
    )
    return BackendChoice("automodel", reason, warning)


def _gpu_backend(device: DeviceConfig) -> BackendChoice | str:
    """Triton's kernels where they are asked for; else why not, "" without a trace of a GPU.

    Raises KernelError where they are asked for and cannot run.
    """
    from hearth.kernels.triton.device import INSTALL_HINT as CUDA_HINT
    from hearth.kernels.triton.device import has_driver

    if device.executor not in GPU_EXECUTORS:
        if not has_driver():
            return ""
        return f"a GPU's driver is loaded: --executor cuda serves on it; {UNTRIED}"
    from hearth.engine.device import refusal

    if why := refusal(device.executor):
        message = f"--executor is {device.executor}, and {why}"
        raise KernelError(message, hint=f"{CUDA_HINT}, or leave --executor out")
    return BackendChoice("triton", "--executor", UNTRIED)


def _kernel_backend(device: DeviceConfig, no_gpu: str = "") -> BackendChoice:
    """The executor for a model with a family file; `no_gpu`: why a GPU does not run it."""
    if device.executor == "reference":
        _require_torch("--executor is reference")
        warning = "the reference executor is slow, and not bit-identical between batches"
        return BackendChoice("reference", "--executor", warning)
    try:
        from hearth.kernels.cpu.library import load_library, resolve_isa

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
    resolve_isa(device.isa)
    reason = "--executor" if device.executor == "cpu" else "the C++ kernels are built"
    return BackendChoice("cpu", f"{reason}; {no_gpu}" if no_gpu else reason)


def patterns_of(config: EngineConfig) -> frozenset[Pattern]:
    """Which operations the CPU executor may run in the same tiles."""
    return frozenset() if config.debug_unfused else ALL_PATTERNS


def load_spec(backend: BackendChoice, config: EngineConfig) -> LoadedModel:
    """Reads the model directory, except for its weights. Raises ModelError, ConfigError."""
    model, scheduler = config.model, config.scheduler
    if backend.name != "automodel":
        return load_model_spec(
            model.path,
            model.dtype,
            window=model.window,
            quantize=model.quantize,
            codes=_codes(backend, model.codes),
        )
    from hearth.models.automodel.load import LoadRequest, load_automodel_spec

    num_tokens = scheduler.max_num_batched_tokens
    num_rows = max_logit_rows(scheduler.max_num_seqs, num_tokens)
    path = Path(model.path)
    request = LoadRequest(model.dtype, num_tokens, num_rows, model.window)
    return load_automodel_spec(read_config(path), path, request)


def _codes(backend: BackendChoice, codes: CodesConfig) -> CodesConfig:
    """Rows of a GPU stay in its float type: int8 rows are for the CPU's products."""
    return replace(codes, activations="float32") if backend.name == "triton" else codes


def create_executor(
    backend: BackendChoice,
    loaded: LoadedModel,
    config: EngineConfig,
    shape: EngineShape,
    placement: Placement,
    on_progress: LoadProgress,
    max_patches: int = 0,
) -> CreatedExecutor:
    """Allocates and fills the weights, then builds the executor; memory was planned before.

    `max_patches`: of an image, where the model has an encoder.

    Raises WeightsError, CapacityError, KernelError.
    """
    model = config.model
    if isinstance(loaded, AutoModelSpec):
        return _create_automodel(loaded, model, shape, placement.num_threads)
    family = loaded

    def fill(sink: WeightSink) -> LoadReport:
        return load_weights(family, sink, model.load_format, model.seed, on_progress)

    if backend.name == "cpu":
        run = _CpuRun(config, shape, placement, max_patches)
        return _create_cpu(family, run, fill, on_progress)
    if backend.name == "triton":
        from hearth.engine import device

        built = device.create(family, config, shape, fill, max_patches, placement.num_threads)
        return CreatedExecutor(
            built.executor, built.choices, built.warnings, built.encoder, built.report.rounding
        )
    return _create_reference(family, shape, placement.num_threads, fill, max_patches)


@dataclass(frozen=True, slots=True)
class _CpuRun:
    """How the CPU executor is to run."""

    config: EngineConfig
    shape: EngineShape
    placement: Placement
    max_patches: int


def _create_cpu(
    loaded: LoadedSpec, run: _CpuRun, fill: Fill, on_progress: LoadProgress
) -> CreatedExecutor:
    from hearth.engine.weight_cache import load_cpu_weights, pack_to_memory
    from hearth.kernels.cpu.encoder import CpuEncoder
    from hearth.kernels.cpu.executor import CpuExecutor, Tiling

    config, shape, placement = run.config, run.shape, run.placement
    isa = config.device.isa
    if config.model.load_format == "dummy":
        load = pack_to_memory(loaded.program, fill, "--load-format is dummy", isa)
    else:
        load = load_cpu_weights(loaded, config.weight_cache, fill, on_progress, isa)
    executor = CpuExecutor(
        loaded.program,
        load.weights,
        shape.limits,
        shape.kv,
        placement.num_threads,
        isa,
        tiling=Tiling(patterns_of(config)),
    )
    for pattern, reason in dict.fromkeys((r.pattern, r.reason) for r in executor.fusion.refused):
        logger.info("operations_not_fused pattern=%s reason=%s", pattern, reason)
    encoder = None
    if loaded.encoder is not None:
        encoder = CpuEncoder(
            loaded.encoder,
            load.weights,
            run.max_patches,
            placement.num_threads,
            isa,
            float_kv(loaded.dtype),  # of keys and values, which are there for one image
            patterns_of(config),
        )
    binding, warnings = _bind(placement, (executor, encoder) if encoder else (executor,))
    choices, warnings = (load.choice, binding), (*load.warnings, *warnings)
    return CreatedExecutor(executor, choices, warnings, encoder, load.rounding)


class _HasThreads(Protocol):
    def bind(self, cpus: Sequence[int]) -> None: ...


def _bind(placement: Placement, teams: Iterable[_HasThreads]) -> tuple[Choice, tuple[str, ...]]:
    """Binds the threads where they are to be bound, those of an image encoder last.

    What was not asked for is left out with a warning where Linux refuses it; else KernelError.
    """
    reason, cpus = placement.bind_reason, placement.cpus
    num_bound = 0
    try:
        for team in teams if cpus else ():
            team.bind(cpus)
            num_bound += 1
    except KernelError as error:
        if placement.is_asked:
            raise
        shown = ", ".join(map(str, cpus))
        if num_bound:  # for good: what is bound stays so
            warning = f"threads of the image encoder are not bound to cores: {error}"
            reason = "threads of the language model alone; Linux refuses the image encoder's"
            return Choice("cpu-bind", shown, reason), (warning,)
        refused = Choice("cpu-bind", "none", "Linux refuses to bind threads here")
        return refused, (f"threads are not bound to cores: {error}",)
    return Choice("cpu-bind", ", ".join(map(str, cpus)) or "none", reason), ()


def _create_reference(
    loaded: LoadedSpec, shape: EngineShape, threads: int, fill: Fill, max_patches: int
) -> CreatedExecutor:
    import torch

    from hearth.kernels.reference.encoder import ReferenceEncoder
    from hearth.kernels.reference.executor import ReferenceExecutor
    from hearth.kernels.reference.weights import ReferenceWeights

    torch.set_num_threads(threads)
    weights = ReferenceWeights(loaded.program)
    report = fill(weights)
    executor = ReferenceExecutor(loaded.program, weights, shape.limits, shape.kv)
    encoder = None
    if loaded.encoder is not None:
        encoder = ReferenceEncoder(loaded.encoder, weights, max_patches)
    return CreatedExecutor(executor, (), report.warnings, encoder, report.rounding)


def _create_automodel(
    spec: AutoModelSpec, model: ModelConfig, shape: EngineShape, threads: int
) -> CreatedExecutor:
    """Loads, compares with the model's own attention (without --window), then allocates the KV."""
    import torch

    from hearth.models.automodel.check import check_paged
    from hearth.models.automodel.executor import AutoModelExecutor, PagedModel
    from hearth.models.automodel.load import load_model

    torch.set_num_threads(threads)
    loaded, warnings = load_model(spec, model.load_format, model.seed)
    report = check_paged(PagedModel(loaded, replace(spec, window=0)))
    paged = PagedModel(loaded, spec)
    executor = AutoModelExecutor(paged, shape.limits, shape.kv, report)
    return CreatedExecutor(executor, (), warnings)


def _require_torch(why: str) -> None:
    """Raises KernelError when torch is not installed; does not import it."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise KernelError(f"{why}, and torch is not installed", hint=INSTALL_HINT)
