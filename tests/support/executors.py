"""Builds any executor for a loaded model, so that one suite runs over all of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import pytest

from hearth.core.errors import KernelError
from hearth.core.program import StepProgram
from hearth.core.step import Executor, KvConfig, StepLimits
from hearth.kernels.packing import WeightSink
from hearth.models.loader import LoadedSpec
from hearth.models.weights import load_weights

NAMES = ("reference", "cpu")
DEVICE_NAME = "triton"  # on the CPU, in plain torch


@dataclass(frozen=True)
class Setup:
    """What an executor is built for; `program` None: the model's own (mutants give another)."""

    loaded: LoadedSpec
    max_tokens: int = 512
    block_size: int = 16
    num_blocks: int = 256
    load_format: str = "auto"
    threads: int = 2
    kv_dtype: str | None = None  # None: that of the weights


def build_executor(name: str, setup: Setup, program: StepProgram | None = None) -> Executor:
    """An executor with the model's weights. The cpu one is never skipped where it can be built."""
    program = program or setup.loaded.program
    limits = StepLimits(
        max_tokens=setup.max_tokens,
        max_sequences=64,
        max_logit_rows=setup.max_tokens,
        max_model_len=setup.loaded.spec.max_position_embeddings,
    )
    num_blocks = (setup.num_blocks,) * len(program.kv_groups)
    kv = KvConfig(setup.block_size, num_blocks, setup.kv_dtype or setup.loaded.dtype.value)
    if name == "reference":
        from hearth.kernels.reference.executor import ReferenceExecutor
        from hearth.kernels.reference.weights import ReferenceWeights

        reference_weights = ReferenceWeights(program)
        _load(setup, program, reference_weights)
        return ReferenceExecutor(program, reference_weights, limits, kv)
    if name == DEVICE_NAME:
        return _triton(setup, program, limits, kv)
    require_cpu_library()
    from hearth.kernels.cpu.executor import CpuExecutor
    from hearth.kernels.cpu.weights import CpuWeights

    cpu_weights = CpuWeights(program)
    _load(setup, program, cpu_weights)
    return CpuExecutor(program, cpu_weights, limits, kv, setup.threads)


def _triton(setup: Setup, program: StepProgram, limits: StepLimits, kv: KvConfig) -> Executor:
    """The GPU's executor on the CPU, through plain torch operations."""
    import torch

    from hearth.kernels.triton.executor import DeviceChoice, TritonExecutor
    from hearth.kernels.triton.kernels import plain_kernels
    from hearth.kernels.triton.weights import TritonWeights

    device = torch.device("cpu")
    weights = TritonWeights(program, setup.loaded.dtype, device)
    _load(setup, program, weights)
    choice = DeviceChoice(device, plain_kernels(), "a test")
    return TritonExecutor(program, weights, limits, kv, choice)


def require_cpu_library() -> None:
    """Skips only where the library is missing and nothing could have built it."""
    from hearth.kernels.cpu.library import load_library

    try:
        load_library()
    except KernelError:
        if shutil.which("g++") is None:
            pytest.skip("no CPU kernel library, and no g++ to build it")
        raise


def _load(setup: Setup, program: StepProgram, sink: WeightSink) -> None:
    """Loads the slots of `program`, which a mutant may have fewer of than the model."""
    load_weights(replace(setup.loaded, program=program), sink, setup.load_format)
