"""GGUF files against the package `gguf` and transformers: every element, names, logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tests.support.executors import NAMES
from tests.support.foreign import expected_logits, logits_of, relative_error, values_of
from tests.support.gguf_models import (
    ARCHITECTURES,
    K_TYPES,
    TypeOf,
    random_blocks,
    save_gguf,
    stored,
)
from tests.support.hf_models import ModelCase, build_model

from hearth.core.errors import WeightsError
from hearth.core.spec import SlotKind
from hearth.models.formats.gguf_rows import dequantized
from hearth.models.gguf import view as views
from hearth.models.gguf.names import ARCHITECTURES as KNOWN
from hearth.models.gguf.names import checkpoint_name
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.stored_weights import stored_weights
from hearth.models.weights import check_weights

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 264,
    "num_hidden_layers": 2,
}
CASES = {
    "llama": ModelCase("llama", "llama", 3, SIZES),
    "llama-tied": ModelCase("llama-tied", "llama", 3, {**SIZES, "tie_word_embeddings": True}),
    "llama-bias": ModelCase("llama-bias", "llama", 3, {**SIZES, "attention_bias": True}),
    "qwen2": ModelCase("qwen2", "qwen2", 5, SIZES),
    "qwen3": ModelCase("qwen3", "qwen3", 7, SIZES),
    "glm4": ModelCase("glm4", "glm4", 9, SIZES),
}
EXACT = (Type.Q4_0, Type.Q8_0)
PLAIN = (Type.F32, Type.F16, Type.BF16)
CONVERTED = (Type.Q4_1, Type.Q5_0, Type.Q5_1, *K_TYPES)
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests have no vocabulary."""
    monkeypatch.setattr(views, "vocabulary_files", lambda _: {})


def save(directory: Path, name: str, type_of: TypeOf) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file, its view, and what its matrices stand for."""
    path = directory / f"{name}.gguf"
    values = save_gguf(build_model(CASES[name]), path, type_of)
    return views.view_of(path, {"XDG_CACHE_HOME": str(directory / "cache")}), values


def mixed(key: str) -> Type:
    """As Q4_K_M: values and the way down more exactly, the head most."""
    if "v_proj" in key or "down_proj" in key or "lm_head" in key:
        return Type.Q6_K
    return Type.F16 if "o_proj" in key else Type.Q4_K


def quarters(key: str) -> Type:
    """Exact forms of 4 and 8 bits, and floating point, within one matrix of the program."""
    if "k_proj" in key:
        return Type.F16
    return Type.Q8_0 if "v_proj" in key or "up_proj" in key else Type.Q4_0


@pytest.mark.parametrize("kind", [*EXACT, *CONVERTED], ids=lambda kind: kind.name)
def test_blocks_stand_for_what_the_library_says(kind: Type) -> None:
    weight = np.random.default_rng(1).normal(size=(7, 512)).astype(np.float32)
    data, values = stored(weight, kind, 1)
    assert np.array_equal(dequantized(kind.name, data, 512), values)


@pytest.mark.parametrize("kind", K_TYPES, ids=lambda kind: kind.name)
def test_every_bit_of_a_block_is_read_as_the_library_reads_it(kind: Type) -> None:
    blocks = random_blocks(kind, 64, 1024, seed=2)
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.array_equal(dequantized(kind.name, blocks, 1024), expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "glm4"])
def test_names_are_those_of_the_library(name: str) -> None:
    names = gguf.get_tensor_name_map(ARCHITECTURES[name], 2)
    for key in build_model(CASES[name]).state_dict():
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert found is not None
        assert checkpoint_name(KNOWN[name], found) == key


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", CASES)
def test_codes_are_taken_exactly(tmp_path: Path, name: str, kind: Type) -> None:
    path, expected = save(tmp_path, name, lambda _: kind)
    loaded, report, values = values_of(path)
    assert values.keys() == expected.keys()
    for tensor, found in values.items():
        assert np.array_equal(found, expected[tensor].numpy()), tensor
    assert report.warnings == ()
    slots = [slot for slot in loaded.spec.slots if slot.kind is SlotKind.LINEAR]
    assert {slot.quant.bits for slot in slots} == {4 if kind is Type.Q4_0 else 8}
    assert read_checkpoint(path).files == (path / "model.gguf",)


@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_what_no_kernel_has_is_converted_and_says_what_it_cost(tmp_path: Path, kind: Type) -> None:
    path, expected = save(tmp_path, "llama", lambda _: kind)
    loaded, report, values = values_of(path)
    assert values.keys() == expected.keys()
    errors = [relative_error(values[tensor], expected[tensor].numpy()) for tensor in values]
    assert 0 < max(errors) < 1e-4
    assert any(f"stored as GGUF {kind.name}" in warning for warning in report.warnings)
    assert any(kind.name in warning for warning in check_weights(loaded).warnings)


@pytest.mark.parametrize("type_of", [mixed, quarters])
def test_matrices_of_several_types_become_int8_together(tmp_path: Path, type_of: Any) -> None:
    path, expected = save(tmp_path, "llama", type_of)
    loaded, report, values = values_of(path)
    slots = {slot.name: slot for slot in loaded.spec.slots}
    qkv = slots["layers.0.qkv"]
    assert (qkv.quant.bits, qkv.quant.group_size) == (8, 32)
    for tensor, found in values.items():
        error = relative_error(found, expected[tensor].numpy())
        is_exact = type_of is quarters and "k_proj" not in tensor
        assert error == 0 if is_exact else 0 < error < 1e-4, tensor
    told = " ".join(report.warnings)
    assert ("floating point beside codes" in told) == (type_of is quarters)
    notes = " ".join(stored_weights(loaded, read_checkpoint(path)).notes)
    assert "kept as int8" in notes


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("kind", [Type.F16, Type.Q4_0, Type.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_dequantized_model(
    tmp_path: Path, name: str, kind: Type, executor: str
) -> None:
    path, values = save(tmp_path, name, lambda _: kind)
    expected = expected_logits(CASES[name], values, TOKENS)
    found = logits_of(path, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_floating_point_is_served_as_it_is(tmp_path: Path, kind: Type) -> None:
    path, _ = save(tmp_path, "llama", lambda _: kind)
    loaded = load_model_spec(path)
    names = {Type.F32: "float32", Type.F16: "float16", Type.BF16: "bfloat16"}
    assert loaded.dtype.value == names[kind]
    assert not any(slot.quant.bits for slot in loaded.spec.slots)
    assert load_model_spec(path, quantize="int4").spec.slots[1].quant.bits in (4, 8)


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_K, Type.Q6_K], ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_are_refused(tmp_path: Path, kind: Type) -> None:
    path, _ = save(tmp_path, "llama", lambda _: kind)
    entry = read_checkpoint(path).tensors["model.layers.0.self_attn.q_proj.weight"]
    with (path / "model.gguf").open("r+b") as file:
        file.seek(entry.begin + (208 if kind is Type.Q6_K else 0))
        file.write(np.array([np.inf], "<f2").tobytes())
    with pytest.raises(WeightsError, match=r"q_proj\.weight has values that are not finite"):
        values_of(path)


def test_parts_that_the_library_writes_are_one_model(tmp_path: Path) -> None:
    model = build_model(CASES["llama"])
    whole, _ = save(tmp_path, "llama", mixed)
    save_gguf(model, tmp_path / "parts.gguf", mixed, part_tensors=8)
    names = sorted(path.name for path in tmp_path.glob("parts-*.gguf"))
    assert names == [f"parts-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    view = views.view_of(tmp_path / names[0], cache)
    assert (view / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    assert len(read_checkpoint(view).files) == 3
    expected, found = values_of(whole)[2], values_of(view)[2]
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    # Whichever part is named, and a directory of nothing else, is the same model.
    (tmp_path / "llama.gguf").unlink()
    for path in (tmp_path / names[0], tmp_path / names[2], tmp_path):
        assert views.find_gguf(path) == tmp_path / names[0]


def test_factors_of_frequencies_are_applied(tmp_path: Path) -> None:
    """Llama 3.1's scaling, which llama.cpp's converter writes as a tensor."""
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    case = ModelCase("llama3", "llama", 3, {**SIZES, "rope_parameters": scaling})
    plain = 10000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = np.array([_llama3_factor(float(f)) for f in plain], np.float32)
    assert len(set(factors.round(3))) > 2
    path = tmp_path / "llama3.gguf"
    values = save_gguf(build_model(case), path, lambda _: Type.F32, factors=factors)
    view = views.view_of(path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    tokens = TOKENS * 4
    expected = expected_logits(case, values, tokens)
    found = logits_of(view, "cpu", tokens)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def _llama3_factor(frequency: float) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength < 64 / 4:
        return 1.0
    if wavelength > 64:
        return 8.0
    smooth = (64 / wavelength - 1) / (4 - 1)
    return 1 / ((1 - smooth) / 8 + smooth)
