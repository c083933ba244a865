"""Which weights `--quantize` turns into codes, and what the program does with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.models.test_experts import QWEN3
from tests.unit.models.test_experts import load_spec as load_experts

from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.program import Linear, Quantize
from hearth.core.spec import SlotKind
from hearth.kernels.packing import arena_bytes
from hearth.models.loader import load_model_spec
from hearth.models.quantize import quantized, storage_of


@pytest.mark.parametrize(("scheme", "bits"), [("int4", 4), ("int8", 8)])
def test_every_matrix_becomes_codes_and_every_layer_reads_int8_rows(scheme: str, bits: int) -> None:
    loaded = load_model_spec(BUILT_IN_DIR, quantize=scheme)
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


def test_the_scheme_survives_another_length() -> None:
    loaded = load_model_spec(BUILT_IN_DIR, quantize="int4")
    assert loaded.at_length(64).program == loaded.program


def test_sizes_follow_the_bits() -> None:
    sizes = [
        arena_bytes(load_model_spec(BUILT_IN_DIR, quantize=q).program.slots)
        for q in ("none", "int8", "int4")
    ]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


def test_routers_and_experts_stay_as_they_are(tmp_path: Path) -> None:
    spec = quantized(load_experts(tmp_path, QWEN3, num_hidden_layers=1).spec, "int4")
    kept = [slot.name for slot in spec.slots if not slot.quant.bits and slot.cols > 1]
    assert len(kept) == 3  # router, gate and up, down
    assert "float32" in storage_of(spec.slots)
    assert "int4" in storage_of(spec.slots)


def test_none_changes_nothing() -> None:
    spec = load_model_spec(BUILT_IN_DIR).spec
    assert quantized(spec, "none") is spec
    assert storage_of(spec.slots) == "bfloat16 100 %"
