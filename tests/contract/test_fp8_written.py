"""`hearth quantize --scheme fp8` against compressed-tensors, transformers and torch.

Every element of what is written equals what the libraries make of it; in float32 a number times its
bfloat16 scale is exact, so that there is no tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import disable_quantization
from safetensors.torch import load_file, save_file
from tests.contract.test_quantized_checkpoints import BUILT_IN, CASES, assert_same_values, save
from tests.support.compressed import values_by_library, values_by_transformers
from tests.support.executors import NAMES
from tests.support.foreign import expected_logits, logits_of, relative_error
from tests.support.hf_models import build_model
from tools.demo_model import TEXT_MODEL_DIR
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hearth.core.config import CodesConfig
from hearth.core.errors import WeightsError
from hearth.core.spec import DType, QuantSpec, SlotKind, WeightSlot
from hearth.kernels.e4m3 import e4m3_values, to_e4m3
from hearth.kernels.packing import HostTensor
from hearth.models.loader import load_model_spec
from hearth.quant.checkpoint import Scheme, quantize_directory
from hearth.quant.rows import whole_row_codes

FP8 = Scheme("fp8", CodesConfig(), per_row=True)
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]
ROUNDED_INPUTS = 0.02  # of the logits' squares: e4m3 has 3 bits of fraction


def written(source: Path, target: Path) -> Path:
    quantize_directory(source, target, FP8, lambda *_: None)
    return target


@pytest.mark.parametrize("name", ["llama", "llama-sharded", "glm4", "phi3", "qwen2-tied"])
def test_what_hearth_writes_others_read_element_by_element(tmp_path: Path, name: str) -> None:
    target = written(save(CASES[name], tmp_path / "source"), tmp_path / "q")
    assert assert_same_values(target, values_by_library(target)) >= 8
    assert assert_same_values(target, values_by_transformers(target, AutoModelForCausalLM)) >= 8


@pytest.mark.parametrize(
    ("source", "cls"),
    [(TEXT_MODEL_DIR, AutoModelForCausalLM), (BUILT_IN, AutoModelForImageTextToText)],
    ids=["text", "vision"],
)
def test_the_trained_models_round_trip(tmp_path: Path, source: Path, cls: Any) -> None:
    target = written(source, tmp_path / "q")
    assert assert_same_values(target, values_by_transformers(target, cls)) >= 20


def test_the_section_is_that_of_fp8_dynamic(tmp_path: Path) -> None:
    """What llm-compressor's FP8_DYNAMIC writes, and vLLM's kernels ask for."""
    target = written(save(CASES["llama"], tmp_path / "source"), tmp_path / "q")
    section = json.loads((target / "config.json").read_text())["quantization_config"]
    assert section["format"] == "float-quantized"
    (group,) = section["config_groups"].values()
    assert group["format"] == "float-quantized"
    assert group["targets"] == ["Linear"]
    weights, inputs = group["weights"], group["input_activations"]
    assert (weights["num_bits"], weights["type"], weights["strategy"]) == (8, "float", "channel")
    assert (weights["symmetric"], weights["dynamic"]) == (True, False)
    assert (inputs["num_bits"], inputs["type"], inputs["strategy"]) == (8, "float", "token")
    assert (inputs["symmetric"], inputs["dynamic"]) == (True, True)
    tensors = load_file(target / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert tensors[name].dtype == torch.float8_e4m3fn
    assert tensors[f"{name}_scale"].shape == (128, 1)


@pytest.mark.parametrize("executor", NAMES)
def test_logits_are_those_of_the_same_weights_in_transformers(
    tmp_path: Path, executor: str
) -> None:
    target = written(save(CASES["llama"], tmp_path / "source", torch.float32), tmp_path / "q")
    expected = expected_logits(CASES["llama"], values_by_library(target), TOKENS)
    found = logits_of(target, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("executor", NAMES)
def test_experts_are_multiplied_as_the_numbers_that_they_are(tmp_path: Path, executor: str) -> None:
    source = save(CASES["mixtral"], tmp_path / "source", torch.float32)
    target = written(source, tmp_path / "q")
    values = values_by_library(target)
    assert sum(".experts." in name for name in values) == 2 * 4 * 3
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file({**load_file(source / "model.safetensors"), **values}, plain / "model.safetensors")
    expected = logits_of(plain, "reference", TOKENS)
    found = logits_of(target, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def transformers_logits(path: Path, tokens: list[int], *, rounds_inputs: bool) -> Any:
    """Those of the written checkpoint as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if not rounds_inputs:
        model.apply(disable_quantization)
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def test_a_whole_model_gives_the_logits_that_transformers_gives(tmp_path: Path) -> None:
    """Without the rounding of inputs, which hearth leaves out: measured, 2e-6 of the largest."""
    target = written(TEXT_MODEL_DIR, tmp_path / "q")
    expected = transformers_logits(target, TOKENS, rounds_inputs=False)
    found = logits_of(target, "cpu", TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_rounded_inputs_are_what_else_transformers_does(tmp_path: Path) -> None:
    """One scale a token and 3 bits of fraction: that costs more than the rounding of weights."""
    target = written(TEXT_MODEL_DIR, tmp_path / "q")
    found = logits_of(target, "cpu", TOKENS)
    rounded = transformers_logits(target, TOKENS, rounds_inputs=True)
    assert 0 < relative_error(rounded, found) < ROUNDED_INPUTS


def test_codes_are_torchs_own() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(1 << 16) * np.exp2(random.uniform(-14, 10, 1 << 16))
    numbers = e4m3_values()[:127]
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = np.concatenate([numbers, middles])
    near = np.concatenate([near, np.nextafter(near, np.float32(1e9)), np.nextafter(near, near * 0)])
    special = [1e-45, -0.0, 1e30, -np.inf]
    array = np.array([*values, *near, *-near, *special], np.float32)
    limited = torch.from_numpy(np.clip(array, -448, 448))
    expected = limited.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(to_e4m3(array), expected)
    assert to_e4m3(np.array([np.nan], np.float32))[0] & 127 == 127


def rows_of(values: Any) -> HostTensor:
    array = np.asarray(values, np.float32)
    return HostTensor(array.reshape(-1).view(np.uint8), DType.FLOAT32, array.shape)


def test_rows_of_zeros_and_of_any_size_keep_their_values() -> None:
    quant = QuantSpec(bits=8, group_size=32, is_float=True)
    slot = WeightSlot("w", SlotKind.LINEAR, 4, 3, (), quant)
    rows = [[0, 0, 0], [448, -1.75, 2**-9], [1e30, -5e29, 0], [3e-30, 1e-30, 0]]
    coded = whole_row_codes(slot, rows_of(rows))
    found = e4m3_values()[coded.codes] * coded.scales
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == rows[1]
    assert found == pytest.approx(np.array(rows, np.float32), rel=1 / 14)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    model = build_model(CASES["llama"])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(WeightsError, match=r"layers\.0\.mlp\.up_proj\.weight: .*not finite"):
        written(tmp_path / "source", tmp_path / "q")
    assert not (tmp_path / "q" / "config.json").exists()


def test_a_run_that_was_ended_goes_on_with_the_files_that_are_whole(tmp_path: Path) -> None:
    source = save(CASES["llama-sharded"], tmp_path / "source")
    target = written(source, tmp_path / "q")
    first = {path.name: path.read_bytes() for path in target.iterdir()}
    kept, *rest = sorted(target.glob("*.safetensors"))
    made_at = kept.stat().st_mtime_ns
    assert rest
    for path in (*rest, target / "config.json"):
        path.unlink()
    written(source, target)
    assert kept.stat().st_mtime_ns == made_at
    assert {path.name: path.read_bytes() for path in target.iterdir()} == first


def test_it_is_served_in_a_byte_a_weight(tmp_path: Path) -> None:
    target = written(save(CASES["llama"], tmp_path / "source"), tmp_path / "q")
    loaded = load_model_spec(target)
    stored = [slot for slot in loaded.program.slots if slot.stored is not None]
    assert len(stored) >= 8
    assert {slot.quant.name for slot in stored} == {"fp8 (groups of 128)", "fp8 (groups of 64)"}
