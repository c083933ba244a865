"""Channels that stand out: seen on the canary's prompts, told, and harmless with residuals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from tests.contract.test_canary import LLAMA, MOE
from tests.support.executors import require_cpu_library
from tests.support.hf_models import Expected, ModelCase

from hearth.core.config import CodesConfig
from hearth.core.spec import KvDType, SlotKind
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.canary import canary_logits, check_canary
from hearth.engine.engine import EngineShape
from hearth.engine.outliers import STANDS_OUT, OutlierProbe
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

ExpectedOf = Callable[[ModelCase], Expected]
Mutate = Callable[[CpuWeights, LoadedSpec], None]
CHANNEL = 7


def shape_of(loaded: LoadedSpec) -> EngineShape:
    """With room for all prompts in one step."""
    kv = KvConfig(32, (8,) * len(loaded.program.kv_groups), KvDType(loaded.dtype.value))
    return EngineShape(StepLimits(16, 4, 16, 512), kv)


def started(loaded: LoadedSpec, mutate: Mutate | None = None) -> CpuExecutor:
    require_cpu_library()
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    if mutate is not None:
        mutate(weights, loaded)
    shape = shape_of(loaded)
    return CpuExecutor(loaded.program, weights, shape.limits, shape.kv, 2)


def with_outlier(weights: CpuWeights, loaded: LoadedSpec) -> None:
    """One channel of what the norms of the first layer give."""
    name = loaded.spec.layers[0].attention_norm.weight
    slot = loaded.program.slot(name)
    assert slot.kind is SlotKind.VECTOR
    weights.packed(slot).view(np.float32)[CHANNEL] *= 500


@pytest.mark.parametrize("case", [LLAMA, MOE], ids=lambda case: case.name)
@pytest.mark.parametrize("activations", ["int8", "int8-residual"])
def test_looking_changes_no_bit(case: ModelCase, activations: str, expected_of: ExpectedOf) -> None:
    codes = CodesConfig(activations)
    loaded = load_model_spec(expected_of(case).path, quantize="int4", codes=codes)
    with closing(started(loaded, with_outlier)) as executor:
        shape, probe = shape_of(loaded), OutlierProbe(executor)
        whole = canary_logits(executor, shape)
        parts = canary_logits(executor, shape, probe)
    assert probe.found
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, parts, strict=True))


def test_a_model_without_outliers_warns_of_none(expected_of: ExpectedOf) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int8")
    with closing(started(loaded)) as executor:
        probe = OutlierProbe(executor)
        reason = check_canary(executor, shape_of(loaded), None, loaded, probe).reason
    assert "no channel stands out" in reason
    assert probe.warnings() == ()


def test_an_outlier_is_told_with_who_reads_it_and_the_flag_that_helps(
    expected_of: ExpectedOf,
) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int8")
    with closing(started(loaded, with_outlier)) as executor:
        probe = OutlierProbe(executor)
        reason = check_canary(executor, shape_of(loaded), None, None, probe).reason
    (warning,) = probe.warnings()
    reader = loaded.spec.layers[0].attention.qkv
    assert probe.outliers[0].weight == reader
    assert probe.outliers[0].ratio >= STANDS_OUT
    assert f"{reader}: " in warning
    assert "--activations int8-residual" in warning
    assert "channels stand out in 1 of" in reason


def test_residuals_need_no_warning(expected_of: ExpectedOf) -> None:
    codes = CodesConfig("int8-residual")
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int8", codes=codes)
    with closing(started(loaded, with_outlier)) as executor:
        probe = OutlierProbe(executor)
        reason = check_canary(executor, shape_of(loaded), None, None, probe).reason
    assert probe.outliers
    assert probe.warnings() == ()
    assert "channels stand out in 1 of" in reason


def test_float32_rows_are_not_looked_at(expected_of: ExpectedOf) -> None:
    codes = CodesConfig("float32")
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int8", codes=codes)
    with closing(started(loaded, with_outlier)) as executor:
        probe = OutlierProbe(executor)
        reason = check_canary(executor, shape_of(loaded), None, None, probe).reason
    assert "channel" not in reason
    assert probe.warnings() == ()
