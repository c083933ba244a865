"""Which weights `--quantize` turns into codes, and what the program does with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.models.test_experts import QWEN3
from tests.unit.models.test_experts import load_spec as load_experts
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import CodesConfig
from hearth.core.program import Experts, Linear, Quantize
from hearth.core.spec import MoeSpec, SlotKind
from hearth.kernels.packing import arena_bytes
from hearth.models.loader import load_model_spec
from hearth.models.lower import lower
from hearth.models.quantize import distinct_schemes, quantized, storage_of


@pytest.mark.parametrize(("scheme", "bits"), [("int4", 4), ("int8", 8)])
def test_every_matrix_becomes_codes_and_every_layer_reads_int8_rows(scheme: str, bits: int) -> None:
    loaded = load_model_spec(TEXT_MODEL_DIR, quantize=scheme)
    for slot in loaded.program.slots:
        if slot.kind is SlotKind.VECTOR:
            assert slot.quant.bits == 0
        else:
            assert slot.quant.bits == (8 if slot.name == loaded.spec.head else bits)
    ops = loaded.program.ops
    layers = [index for index, op in enumerate(ops) if isinstance(op, Linear)]
    for index in layers:
        before, layer = ops[index - 1], ops[index]
        assert isinstance(before, Quantize)
        assert isinstance(layer, Linear)
        assert layer.x == before.out
        assert loaded.program.buffers[before.out].group_size > 0


@pytest.mark.parametrize("activations", ["auto", "float32"])
def test_fp8_reads_float_rows_in_int8s_memory(activations: str) -> None:
    codes = CodesConfig(activations, 64, zero_points=True)
    loaded = load_model_spec(TEXT_MODEL_DIR, quantize="fp8", codes=codes)
    matrices = [slot for slot in loaded.program.slots if slot.kind is not SlotKind.VECTOR]
    assert {slot.quant.name for slot in matrices} == {"fp8 (groups of 64)"}
    assert not any(isinstance(op, Quantize) for op in loaded.program.ops)
    assert storage_of(loaded.program.slots) == "fp8 100 %"
    int8 = load_model_spec(TEXT_MODEL_DIR, quantize="int8", codes=CodesConfig(activations, 64))
    assert arena_bytes(loaded.program.slots) == arena_bytes(int8.program.slots)


def test_auto_never_chooses_fp8() -> None:
    assert distinct_schemes(load_model_spec(TEXT_MODEL_DIR).spec) == ("none", "int8", "int4")


@pytest.mark.parametrize("scheme", ["int4", "fp8"])
def test_the_scheme_survives_another_length(scheme: str) -> None:
    loaded = load_model_spec(TEXT_MODEL_DIR, quantize=scheme)
    assert loaded.at_length(64).program == loaded.program


def test_sizes_follow_the_bits() -> None:
    sizes = [
        arena_bytes(load_model_spec(TEXT_MODEL_DIR, quantize=q).program.slots)
        for q in ("none", "int8", "int4")
    ]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_experts_become_codes_and_routers_stay_as_they_are(
    tmp_path: Path, activations: str
) -> None:
    spec = load_experts(tmp_path, QWEN3, num_hidden_layers=1).spec
    coded = quantized(spec, "int4", CodesConfig(activations))
    kept = [slot.name for slot in coded.slots if not slot.quant.bits and slot.cols > 1]
    (moe,) = (layer.mlp for layer in spec.layers)
    assert isinstance(moe, MoeSpec)
    assert kept == [moe.router_weight]
    program = lower(coded)
    (experts,) = (op for op in program.ops if isinstance(op, Experts))
    (router,) = (op for op in program.ops if isinstance(op, Linear) and op.weight == kept[0])
    assert program.buffers[router.x].group_size == 0
    is_rounded = activations == "int8"
    assert (program.buffers[experts.x].group_size > 0) == is_rounded
    assert (experts.gated_codes is not None) == is_rounded


@pytest.mark.parametrize("activations", ["int8", "int8-residual"])
def test_rows_keep_residuals_where_asked_for_and_weights_stay_the_same(activations: str) -> None:
    loaded = load_model_spec(TEXT_MODEL_DIR, quantize="int4", codes=CodesConfig(activations))
    is_residual = activations == "int8-residual"
    rounded = [buffer for buffer in loaded.program.buffers if buffer.group_size]
    assert {buffer.residual for buffer in rounded} == {is_residual}
    for slot in loaded.spec.slots:
        assert slot.quant.residual_rows == (is_residual and slot.quant.int8_rows)
    plain = load_model_spec(TEXT_MODEL_DIR, quantize="int4")
    sizes = [arena_bytes(one.program.slots) for one in (loaded, plain)]
    assert sizes[0] == sizes[1]


def test_none_changes_nothing() -> None:
    spec = load_model_spec(TEXT_MODEL_DIR).spec
    assert quantized(spec, "none") is spec
    assert storage_of(spec.slots) == "bfloat16 100 %"
