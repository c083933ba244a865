"""Weights mapped from the cache give the same bits as weights packed a moment ago."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contract.plan_builder import PlanBuilder, teacher_forced
from tests.support.executors import require_cpu_library
from tests.support.hf_models import Expected
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import CodesConfig, WeightCacheConfig
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.weight_cache import CpuLoad, load_cpu_weights
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights
from hearth.quant.checkpoint import Scheme, quantize_directory

FP8 = Scheme("fp8", CodesConfig(), per_row=True)
LENGTH, BUDGET, BLOCK = 70, 32, 16


def start(loaded: LoadedSpec, config: WeightCacheConfig) -> CpuLoad:
    load = load_cpu_weights(
        loaded, config, lambda sink: load_weights(loaded, sink), lambda done, total: None
    )
    for thread in threading.enumerate():
        if thread.name == "hearth-weight-cache":
            thread.join()
    return load


def logits_of(loaded: LoadedSpec, load: CpuLoad, tokens: list[int]) -> NDArray[np.float32]:
    limits = StepLimits(BUDGET, 1, BUDGET, loaded.spec.max_position_embeddings)
    groups = len(loaded.program.kv_groups)
    kv = KvConfig(BLOCK, (16,) * groups, loaded.dtype.value)
    executor = CpuExecutor(loaded.program, load.weights, limits, kv, threads=2)
    try:
        builder = PlanBuilder(BLOCK, 16, num_groups=groups)
        return teacher_forced(executor, builder, [tokens], BUDGET)[0]
    finally:
        executor.close()


def test_a_checkpoint_in_fp8_is_mapped_as_it_was_packed(tmp_path: Path) -> None:
    require_cpu_library()
    quantize_directory(TEXT_MODEL_DIR, tmp_path / "q", FP8, lambda *_: None)
    loaded = load_model_spec(tmp_path / "q")
    kept = WeightCacheConfig(str(tmp_path / "cache"), 1 << 30, min_bytes=0)
    written, mapped = start(loaded, kept), start(loaded, kept)
    assert mapped.choice.value.startswith("mapped")
    assert written.warnings == mapped.warnings == ()
    first, second = (logits_of(loaded, load, list(range(40))) for load in (written, mapped))
    assert np.array_equal(first.view(np.uint32), second.view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_identical_off_while_written_and_mapped(
    expected: Expected, dtype: str, tmp_path: Path
) -> None:
    require_cpu_library()
    loaded = load_model_spec(expected.path, dtype)
    kept = WeightCacheConfig(str(tmp_path), 1 << 30, min_bytes=0)
    loads = [start(loaded, config) for config in (WeightCacheConfig(max_bytes=0), kept, kept)]
    assert [load.choice.value.split(",")[0] for load in loads] == ["off", "written", "mapped"]
    tokens = list(expected.prompts[0]) * LENGTH
    packed, written, mapped = (logits_of(loaded, load, tokens[:LENGTH]) for load in loads)
    assert np.array_equal(packed.view(np.uint32), written.view(np.uint32))
    assert np.array_equal(packed.view(np.uint32), mapped.view(np.uint32))
