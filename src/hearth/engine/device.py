"""Serving on a GPU: what runs there, what it needs, and how it is built.

Imported when a GPU has been chosen, or asked for; everything of torch and Triton comes with it.
`cuda-on-cpu`, for tests, is the same code on the CPU, with Triton's interpreter where
TRITON_INTERPRET is set, else in plain torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hearth.core.config import Choice, EngineConfig
from hearth.core.memory import MemoryItem
from hearth.core.program import Op, StepProgram
from hearth.core.spec import DType, KvDType, WeightSlot, float_kv
from hearth.core.step import ImageEncoder, StepLimits
from hearth.core.units import format_bytes, format_count
from hearth.engine.engine import EngineShape
from hearth.host.fit import max_logit_rows
from hearth.host.memory import HostMemory, MemoryFact, read_memory
from hearth.kernels.packing import CodeRows, HostTensor, WeightSink
from hearth.models.loader import LoadedSpec
from hearth.models.weights import LoadReport

if TYPE_CHECKING:
    import torch

    from hearth.kernels.triton.executor import DeviceChoice, TritonExecutor
    from hearth.kernels.triton.floats import FloatChoice

logger = logging.getLogger("hearth.engine")

ON_CPU = "cuda-on-cpu"


@dataclass(frozen=True, slots=True)
class OnDevice:
    """An executor on a device and what was chosen for it."""

    executor: TritonExecutor
    encoder: ImageEncoder | None
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    report: LoadReport


def refusal(executor: str) -> str:
    """Why nothing runs on a GPU here; empty: it does."""
    from hearth.kernels.triton.device import cuda_refusal

    return "" if executor == ON_CPU else cuda_refusal()


def float_type(config: EngineConfig, model: DType) -> FloatChoice:
    """What the model is computed in."""
    from hearth.kernels.triton.device import float_on

    return float_on(_device(config), model)


def kv_dtype(config: EngineConfig, model: DType) -> KvDType:
    """How keys and values are kept where nothing is asked for."""
    return KvDType(float_type(config, model).dtype)


def block_bytes() -> Callable[..., int]:
    """Bytes of a KV block: (group, block size, dtype)."""
    from hearth.kernels.triton.kv_layout import device_block_bytes

    return device_block_bytes


def memory_of_device(config: EngineConfig) -> HostMemory:
    """What is free where the weights and the KV cache will lie."""
    if config.device.executor == ON_CPU:
        return read_memory()
    from hearth.kernels.triton.device import free_memory

    free = free_memory(_device(config))
    return HostMemory((MemoryFact(free.num_bytes, free.name),))


def fixed_items(config: EngineConfig, loaded: LoadedSpec) -> tuple[MemoryItem, ...]:
    """What the device holds whatever the context. Raises KernelError: an operation has no kernel.

    Images are encoded on the host, and so need nothing here.
    """
    from hearth.kernels.triton import memory

    program, scheduler = device_program(loaded), config.scheduler
    choice = float_type(config, loaded.dtype)
    tokens = scheduler.max_num_batched_tokens
    rows = max_logit_rows(scheduler.max_num_seqs, tokens)
    length = config.model.max_model_len or loaded.max_position_embeddings
    limits = StepLimits(tokens, min(scheduler.max_num_seqs, tokens), rows, length)
    weights = memory.weight_bytes(program.slots, choice.dtype)
    scratch = memory.scratch_bytes(program, limits, choice.dtype, config.cache.block_size)
    scratch += 4 * _linear_scratch(config, program, limits)
    num_parameters = sum(slot.total_rows * max(1, slot.cols) for slot in program.slots)
    codes = {s.quant.storage for s in program.slots if s.quant.bits}
    stored = " and ".join(sorted(codes)) or str(choice.dtype)
    shown = f"{format_count(num_parameters)} parameters as {stored}"
    return (
        MemoryItem("weights", weights, shown),
        MemoryItem(
            "scratch",
            scratch,
            f"buffers of {format_count(tokens)} tokens, logits of {rows} rows, sampling",
        ),
        MemoryItem("graphs", memory.GRAPH_BYTES, "CUDA graphs, and kernels once they are loaded"),
    )


def create(
    loaded: LoadedSpec,
    config: EngineConfig,
    shape: EngineShape,
    fill: Callable[[WeightSink], LoadReport],
    max_patches: int,
    num_threads: int,
) -> OnDevice:
    """Allocates and fills the weights, then builds the executor.

    Raises WeightsError, CapacityError, KernelError.
    """
    from hearth.kernels.triton.executor import TritonExecutor
    from hearth.kernels.triton.weights import TritonWeights

    choice, number = device_choice(config), float_type(config, loaded.dtype)
    program = device_program(loaded)
    weights = TritonWeights(program, number.dtype, choice.device)
    encoder = _encoder(loaded, max_patches, num_threads)
    sink: WeightSink = weights
    if encoder is not None:
        sink = _Both(weights, encoder.sink, frozenset(slot.name for slot in program.slots))
    report = fill(sink)
    executor = TritonExecutor(program, weights, shape.limits, shape.kv, choice)
    for reason in dict.fromkeys(
        (launch.spec.kind, launch.spec.reason) for launch in executor.launches
    ):
        logger.info("launches kind=%s reason=%s", *reason)
    choices: tuple[Choice, ...] = (
        Choice("float type", str(number.dtype), number.reason),
        Choice("weights", format_bytes(weights.num_bytes), f"on {choice.device}"),
    )
    if any(slot.quant.bits and slot.stored is None for slot in program.slots):
        choices += (Choice("codes", "made while loading", weights.quantizer.reason),)
    if encoder is None:
        return OnDevice(executor, None, choices, report.warnings, report)
    warning = "images are encoded on the CPU: the GPU's encoder is not there yet"
    return OnDevice(executor, encoder.make(), choices, (*report.warnings, warning), report)


def device_choice(config: EngineConfig) -> DeviceChoice:
    """Where the executor runs, and by which kernels. Raises KernelError."""
    from hearth.kernels.triton.executor import DeviceChoice
    from hearth.kernels.triton.kernels import plain_kernels, triton_kernels

    device = _device(config)
    if device.type == "cuda":
        return DeviceChoice(device, triton_kernels(), "Triton's kernels on a CUDA device")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return DeviceChoice(device, triton_kernels(), "TRITON_INTERPRET: kernels on the CPU")
    return DeviceChoice(device, plain_kernels(), "plain torch on the CPU, for tests")


def device_program(loaded: LoadedSpec) -> StepProgram:
    """The text model's program, with no slots but its own."""
    return _with_own_slots(loaded.program)


def _device(config: EngineConfig) -> torch.device:
    import torch

    return torch.device("cpu" if config.device.executor == ON_CPU else "cuda")


def _linear_scratch(config: EngineConfig, program: StepProgram, limits: StepLimits) -> int:
    from hearth.kernels.triton.launches import scratch_floats

    return scratch_floats(program, limits, device_choice(config).kernels)


def _with_own_slots(program: StepProgram) -> StepProgram:
    """A program without the slots that none of its operations names."""
    used = {name for op in program.ops for name in _names(op)}
    return replace(program, slots=tuple(slot for slot in program.slots if slot.name in used))


def _names(op: Op) -> set[str]:
    """Weight slots of an operation."""
    fields = ("table", "weight", "bias", "q_weight", "k_weight", "gate_up", "down")
    names = {getattr(op, field, None) for field in fields}
    router = getattr(op, "router", None)
    names.add(router.bias if router is not None else None)
    return {name for name in names if isinstance(name, str)}


@dataclass(frozen=True, slots=True)
class _HostEncoder:
    """Weights of an image encoder on the host, and what makes the encoder once they are there."""

    sink: WeightSink
    make: Callable[[], ImageEncoder]


def _encoder(loaded: LoadedSpec, max_patches: int, num_threads: int) -> _HostEncoder | None:
    """The C++ kernels' encoder where they are built, else that of the reference."""
    if loaded.encoder is None:
        return None
    encoder = replace(loaded.encoder, program=_with_own_slots(loaded.encoder.program))
    from hearth.core.errors import KernelError

    try:
        from hearth.kernels.cpu.encoder import CpuEncoder
        from hearth.kernels.cpu.weights import CpuWeights

        weights = CpuWeights(encoder.program)
    except (KernelError, ImportError):
        from hearth.kernels.reference.encoder import ReferenceEncoder
        from hearth.kernels.reference.weights import ReferenceWeights

        plain = ReferenceWeights(encoder.program)
        return _HostEncoder(plain, lambda: ReferenceEncoder(encoder, plain, max_patches))
    keys = float_kv(loaded.dtype)  # there for one image
    return _HostEncoder(
        weights, lambda: CpuEncoder(encoder, weights, max_patches, num_threads, kv_dtype=keys)
    )


class _Both:
    """Gives each slot to the device or to the host's encoder."""

    def __init__(self, device: WeightSink, host: WeightSink, on_device: frozenset[str]) -> None:
        self._device = device
        self._host = host
        self._on_device = on_device

    def _sink(self, slot: WeightSlot) -> WeightSink:
        return self._device if slot.name in self._on_device else self._host

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """See `WeightSink`."""
        self._sink(slot).put(slot, first_row, tensor)

    def put_codes(self, slot: WeightSlot, first_row: int, rows: CodeRows) -> None:
        """See `WeightSink`."""
        self._sink(slot).put_codes(slot, first_row, rows)

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """See `WeightSink`."""
        self._sink(slot).fill_random(slot, seed)
