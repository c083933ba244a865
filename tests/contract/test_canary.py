"""The start-up canary passes every good model, and refuses mutated weights and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contract.conftest import ExpectedOf
from tests.support.executors import require_cpu_library
from tests.support.hf_models import CASES, MIXTRAL, ModelCase

from hearth.core.config import CodesConfig
from hearth.core.errors import CanaryError
from hearth.core.quality import QualitySummary
from hearth.core.spec import SlotKind
from hearth.core.step import KvConfig, StepLimits
from hearth.engine import canary
from hearth.engine.canary import canary_tokens, check_canary, check_logits
from hearth.engine.engine import EngineShape
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import PANEL_COLUMNS
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

LLAMA = next(case for case in CASES if case.name == "llama-12x3-tied-bias")
MOE = next(case for case in CASES if case.family == "qwen3_moe")
Mutate = Callable[[CpuWeights, LoadedSpec], None]
SUMMARY = QualitySummary(
    weights_key="",
    scheme="int4",
    method="",
    reference="",
    perplexity=1.0,
    text="builtin",
    text_sha256="",
    text_bytes=0,
    num_tokens=1,
    context=1,
    measured_at="2026-01-01T00:00:00Z",
    hearth_version="1",
    executor="",
    canary_version=canary.CANARY_VERSION,
)


def shape_of(loaded: LoadedSpec) -> EngineShape:
    kv = KvConfig(32, (2,) * len(loaded.program.kv_groups), loaded.dtype.value)
    return EngineShape(StepLimits(16, 4, 16, 512), kv)


def started(loaded: LoadedSpec, mutate: Mutate | None = None) -> CpuExecutor:
    require_cpu_library()
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    if mutate is not None:
        mutate(weights, loaded)
    shape = shape_of(loaded)
    return CpuExecutor(loaded.program, weights, shape.limits, shape.kv, 2)


def run(loaded: LoadedSpec, mutate: Mutate | None = None) -> str:
    executor = started(loaded, mutate)
    try:
        return check_canary(executor, shape_of(loaded), None, loaded).reason
    finally:
        executor.close()


@pytest.mark.parametrize("case", [*CASES, MIXTRAL], ids=lambda case: case.name)
def test_good_models_of_all_families_pass(case: ModelCase, expected_of: ExpectedOf) -> None:
    path = expected_of(case).path
    for dtype in ("float32", "bfloat16"):
        assert "matrices give what the checkpoint's rows give" in run(load_model_spec(path, dtype))
    for scheme in ("int8", "int4"):
        for rows in ("int8", "float32"):
            for group in (32, 128):
                how = CodesConfig(rows, group)
                run(load_model_spec(path, quantize=scheme, codes=how))


def codes_of(weights: CpuWeights, loaded: LoadedSpec, name: str) -> NDArray[np.uint8]:
    """Blocks of a linear slot, [n, bytes]: 64 scales, then codes."""
    slot = loaded.program.slot(name)
    block = PANEL_COLUMNS * (2 + slot.quant.group_size * slot.quant.bits // 8)
    return weights.packed(slot).reshape(-1, block)


def swapped_nibbles(weights: CpuWeights, loaded: LoadedSpec) -> None:
    blocks = codes_of(weights, loaded, loaded.spec.layers[-1].attention.qkv)
    head = PANEL_COLUMNS * 2
    blocks[:, head:] = blocks[:, head:] >> 4 | blocks[:, head:] << 4


def doubled_scales(weights: CpuWeights, loaded: LoadedSpec) -> None:
    blocks = codes_of(weights, loaded, loaded.spec.layers[0].attention.out)
    bits = blocks[:, : PANEL_COLUMNS * 2].copy().view(np.uint16)
    blocks[:, : PANEL_COLUMNS * 2] = (bits + np.uint16(1 << 7)).view(np.uint8)  # bfloat16: times 2


def zeroed_head(weights: CpuWeights, loaded: LoadedSpec) -> None:
    weights.packed(loaded.program.slot(loaded.spec.head))[:] = 0


def nan_scale(weights: CpuWeights, loaded: LoadedSpec) -> None:
    name = loaded.spec.layers[0].attention.qkv
    codes_of(weights, loaded, name)[0, :2] = 0xFF


def rotated_rows(weights: CpuWeights, loaded: LoadedSpec) -> None:
    """Neighbouring outputs of the head change places: a wrong layout."""
    blocks = codes_of(weights, loaded, loaded.spec.head)
    blocks[:] = np.roll(blocks, 1, axis=0)


@pytest.mark.parametrize("mutate", [swapped_nibbles, doubled_scales, zeroed_head, nan_scale])
def test_mutated_weights_are_refused_with_what_to_do(
    mutate: Mutate, expected_of: ExpectedOf
) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int4")
    with pytest.raises(CanaryError) as error:
        run(loaded, mutate)
    assert "not served" in error.value.message
    assert "--weight-cache-bytes 0" in str(error.value.hint)


def test_rows_in_another_order_are_refused(expected_of: ExpectedOf) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int8")
    with pytest.raises(CanaryError, match="not served"):
        run(loaded, rotated_rows)


def test_codes_of_experts_are_compared_too(expected_of: ExpectedOf) -> None:
    loaded = load_model_spec(expected_of(MOE).path, quantize="int4")
    stack = next(s for s in loaded.program.slots if s.stack > 1)

    def flipped(weights: CpuWeights, _: LoadedSpec) -> None:
        weights.packed(stack)[PANEL_COLUMNS * 2 :] ^= 0x77

    with pytest.raises(CanaryError, match="not served"):
        run(loaded, flipped)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(dtype: str, expected_of: ExpectedOf) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, dtype)

    def with_nan(weights: CpuWeights, spec: LoadedSpec) -> None:
        weights.packed(spec.program.slot(spec.spec.layers[1].attention.qkv))[:64] = 0xFF

    with pytest.raises(CanaryError, match=r"not finite|off those"):
        run(loaded, with_nan)


class WrongKernel:
    """An executor whose fused kernels are wrong: everything of a real one but its logits."""

    def __init__(self, inner: CpuExecutor) -> None:
        self._inner = inner

    def execute(self, plan: object) -> object:
        result = CpuExecutor.execute(self._inner, plan)  # type: ignore[arg-type]  # passed on
        assert result.logits is not None
        return replace(result, logits=result.logits * np.float32(1.0001))


def test_a_fused_kernel_with_other_bits_is_refused(
    expected_of: ExpectedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int4")
    executor = started(loaded)
    wrong = WrongKernel(executor)
    monkeypatch.setattr(executor, "execute", wrong.execute)
    with pytest.raises(CanaryError, match="fused kernels and single ones differ"):
        check_canary(executor, shape_of(loaded), None, loaded)
    executor.close()


@pytest.fixture
def int4(expected_of: ExpectedOf) -> Iterator[tuple[LoadedSpec, CpuExecutor]]:
    loaded = load_model_spec(expected_of(LLAMA).path, quantize="int4")
    executor = started(loaded)
    yield loaded, executor
    executor.close()


def test_stored_tokens_are_compared(int4: tuple[LoadedSpec, CpuExecutor]) -> None:
    loaded, executor = int4
    shape = shape_of(loaded)
    tokens = canary_tokens(executor, shape)
    stored = replace(SUMMARY, canary=tokens)
    assert "best tokens as measured on 2026-01-01" in check_canary(executor, shape, stored).reason
    others = tuple((token + 1) % loaded.spec.vocab_size for token in tokens)
    with pytest.raises(CanaryError, match="deviations behind"):
        check_canary(executor, shape, replace(SUMMARY, canary=others))
    old = replace(SUMMARY, canary=others, canary_version=0)  # of other prompts
    check_canary(executor, shape, old)


def test_a_step_of_one_token_is_enough(expected_of: ExpectedOf) -> None:
    loaded = load_model_spec(expected_of(LLAMA).path)
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    kv = KvConfig(16, (1,), "float32")
    narrow = EngineShape(StepLimits(1, 1, 1, 2), kv)
    executor = CpuExecutor(loaded.program, weights, narrow.limits, kv, 1)
    assert "fused kernels" in check_canary(executor, narrow, None, loaded).reason
    executor.close()


def rows(*values: float) -> list[NDArray[np.float32]]:
    """Behind four prompts: a row of 50 logits each, drawn, plus what is given for token 7."""
    random = np.random.default_rng(3)
    found = []
    for value in values:
        row = random.standard_normal(50).astype(np.float32)
        row[7] += value
        found.append(row)
    return found


def test_what_is_no_answer_of_a_model_is_refused() -> None:
    check_logits(rows(0, 0, 0, 0))
    check_logits(rows(12, 12, 12, 12))  # sure, as models are: one in a hundred thousand is left
    with pytest.raises(CanaryError, match="token 7 follows every prompt with certainty"):
        check_logits(rows(100, 100, 100, 100))
    with pytest.raises(CanaryError, match="all logits behind prompt 0 are 1"):
        check_logits([np.ones(50, np.float32)] * 4)
    with pytest.raises(CanaryError, match="the same logits follow 4 different prompts"):
        check_logits(rows(0) * 4)
    broken = rows(0, 0)
    broken[1][3] = np.inf
    with pytest.raises(CanaryError, match="1 of 50 logits behind prompt 1 are not finite"):
        check_logits(broken)


def test_tables_are_looked_up_too(expected_of: ExpectedOf) -> None:
    untied = next(case for case in CASES if case.name == "llama-3x3-untied")
    loaded = load_model_spec(expected_of(untied).path, quantize="int8")
    table = loaded.program.slot(loaded.spec.embedding)
    assert table.kind is SlotKind.TABLE

    def shifted(weights: CpuWeights, _: LoadedSpec) -> None:
        packed = weights.packed(table).reshape(table.rows, -1)
        packed[:] = np.roll(packed, 1, axis=0)

    with pytest.raises(CanaryError, match=table.name):
        run(loaded, shifted)
