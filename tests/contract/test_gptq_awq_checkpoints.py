"""GPTQ and AWQ checkpoints against packers that are written plainly from the formats' description.

A code less its zero point, times a float16 scale, is exact in float32: nothing has a tolerance but
what is converted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.executors import NAMES
from tests.support.foreign import (
    GLM4,
    LLAMA,
    expected_logits,
    logits_of,
    relative_error,
    values_of,
)
from tests.support.hf_models import ModelCase, build_model
from tests.support.packers import Pack, awq, gptq, save_packed

from hearth.core.errors import HearthError, ModelError, WeightsError
from hearth.core.spec import SlotKind
from hearth.engine.weight_cache import cache_key
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.stored_weights import stored_weights
from hearth.models.weight_identity import identify
from hearth.models.weights import check_weights, load_weights

PLAIN = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
EXACT: dict[str, tuple[Pack, dict[str, Any]]] = {
    "v1": (gptq(), PLAIN),
    "v2": (gptq(version=2), {**PLAIN, "checkpoint_format": "gptq_v2"}),
    "v1-asym": (gptq(symmetric=False), {**PLAIN, "sym": False}),
    "v2-asym": (
        gptq(symmetric=False, version=2),
        {**PLAIN, "sym": False, "checkpoint_format": "gptq_v2"},
    ),
    "8-bits": (gptq(8, 32), {**PLAIN, "bits": 8, "group_size": 32}),
    "8-bits-asym": (
        gptq(8, 32, symmetric=False),
        {**PLAIN, "bits": 8, "group_size": 32, "sym": False},
    ),
    "whole-columns": (gptq(group_size=-1), {**PLAIN, "group_size": -1}),
    "neighbours-although-ordered": (gptq(), {**PLAIN, "desc_act": True}),
    "awq": (awq(), AWQ),
    "awq-32": (awq(32), {**AWQ, "group_size": 32}),
    "awq-whole-columns": (awq(-1), {**AWQ, "group_size": -1}),
}  # fmt: skip
CONVERTED: dict[str, tuple[Pack, dict[str, Any]]] = {
    "ordered": (gptq(ordered=True), {**PLAIN, "desc_act": True}),
    "ordered-asym": (
        gptq(ordered=True, symmetric=False),
        {**PLAIN, "sym": False, "desc_act": True},
    ),
    "groups-of-16": (gptq(group_size=16), {**PLAIN, "group_size": 16}),
    "awq-groups-of-16": (awq(16), {**AWQ, "group_size": 16}),
}  # fmt: skip
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]


def save(path: Path, name: str, case: ModelCase = LLAMA) -> dict[str, torch.Tensor]:
    pack, section = {**EXACT, **CONVERTED}[name]
    return save_packed(build_model(case), path, pack, section)


@pytest.mark.parametrize("name", EXACT)
def test_codes_are_taken_exactly(tmp_path: Path, name: str) -> None:
    expected = save(tmp_path, name)
    loaded, report, values = values_of(tmp_path)
    assert values.keys() == expected.keys()
    for tensor, found in values.items():
        assert np.array_equal(found, expected[tensor].numpy()), tensor
    assert report.warnings == loaded.warnings == ()
    bits = {s.quant.bits for s in loaded.spec.slots if s.stored is not None}
    assert bits == {8 if "8-bits" in name else 4}


@pytest.mark.parametrize("name", ["v1-asym", "awq"])
def test_parts_of_one_tensor_are_taken_exactly(tmp_path: Path, name: str) -> None:
    """GLM-4 has gate and up in one tensor."""
    expected = save(tmp_path, name, GLM4)
    _, _, values = values_of(tmp_path)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[n], expected[n].numpy()) for n in values)


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_the_data_tells_the_version_whatever_the_label_says(
    tmp_path: Path, version: int, symmetric: bool, label: str
) -> None:
    section = {**PLAIN, "sym": symmetric, "checkpoint_format": label}
    pack = gptq(symmetric=symmetric, version=version)
    expected = save_packed(build_model(LLAMA), tmp_path, pack, section)
    loaded, _, values = values_of(tmp_path)
    assert all(np.array_equal(values[name], expected[name].numpy()) for name in expected)
    is_right = (label == "gptq") == (version == 1)
    assert bool(loaded.warnings) != is_right
    if not is_right:
        assert f"read as version {version}" in loaded.warnings[0]


@pytest.mark.parametrize("name", CONVERTED)
def test_what_no_kernel_has_is_converted_and_says_what_it_cost(tmp_path: Path, name: str) -> None:
    expected = save(tmp_path, name)
    loaded, report, values = values_of(tmp_path)
    errors = [relative_error(values[tensor], expected[tensor].numpy()) for tensor in values]
    assert len(errors) == len(expected)
    assert 0 < max(errors) < 1e-4
    (warning,) = report.warnings
    assert warning.startswith(f"{len(expected)} matrices are stored as ")
    assert "kept as int8 (groups of 32, int8 rows)" in warning
    told = float(warning.rpartition(" ")[2])
    assert told == pytest.approx(np.mean(errors), rel=0.2)
    assert "is measured when they are packed" in check_weights(loaded).warnings[0]
    notes = stored_weights(loaded, read_checkpoint(tmp_path)).notes
    assert any("kept as int8" in note for note in notes)


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("name", ["v1", "v2-asym", "awq", "ordered"])
def test_logits_are_those_of_the_dequantized_model(
    tmp_path: Path, name: str, executor: str
) -> None:
    values = save(tmp_path, name)
    if name == "ordered":  # what it was converted to
        values = {n: torch.from_numpy(v) for n, v in values_of(tmp_path)[2].items()}
    expected = expected_logits(LLAMA, values, TOKENS)
    found = logits_of(tmp_path, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_one_ordered_part_of_a_matrix_converts_the_others_with_it(tmp_path: Path) -> None:
    expected = save(tmp_path, "ordered")
    plain, values = gptq()(build_model(LLAMA).state_dict()[f"{Q}weight"].numpy())
    edit(tmp_path, lambda t: t.update({f"{Q}{name}": part for name, part in plain.items()}))
    expected[f"{Q}weight"] = torch.from_numpy(values)
    _, _, found = values_of(tmp_path)
    assert all(relative_error(found[n], expected[n].numpy()) < 1e-4 for n in expected)


def test_a_hand_made_word_of_each_format() -> None:
    """One word of 0x76543210: GPTQ's is inputs 0 to 7; AWQ's nibble 1 is output 2."""
    from hearth.models.formats.awq_rows import _outputs
    from hearth.models.formats.gptq_rows import _unpacked

    word = np.array([[0x76543210]], np.uint32)
    assert _unpacked(word, 4).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert _outputs(word)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert _unpacked(word, 8).tolist() == [[0x10, 0x32, 0x54, 0x76]]


def edit(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def cut(tensors: dict[str, torch.Tensor], name: str, rows: int, cols: int) -> None:
    tensors[name] = tensors[name][:rows, :cols].clone()


def section(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(values)
    (path / "config.json").write_text(json.dumps(config))


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("name", "change", "error", "says"),
    [
        ("v1", lambda p: section(p, bits=8), WeightsError, "qweight: shape is [16, 128]"),
        ("v1", lambda p: section(p, bits=3), ModelError, "bits is 3; permitted: 4, 8"),
        ("v1", lambda p: section(p, group_size=32), WeightsError, "scales: shape is"),
        ("v1", lambda p: section(p, group_size=0), ModelError, "group_size is 0"),
        ("v1", lambda p: section(p, checkpoint_format="marlin"), ModelError, "checkpoint_format"),
        ("v1", lambda p: section(p, is_marlin_format=True), ModelError, "is_marlin_format"),
        ("v1", lambda p: section(p, dynamic={"+:.*": {"bits": 8}}), ModelError, "dynamic"),
        ("v1-asym", lambda p: section(p, sym=True), WeightsError, "sym: true"),
        ("ordered", lambda p: section(p, desc_act=False), WeightsError, "desc_act: false"),
        ("v1", lambda p: edit(p, lambda t: t.pop(f"{Q}scales")), WeightsError, "q_proj.scales"),
        ("v1", lambda p: edit(p, lambda t: t.pop(f"{Q}qzeros")), WeightsError, "q_proj.qzeros"),
        ("v1", lambda p: edit(p, lambda t: cut(t, f"{Q}qzeros", 2, 4)),
         WeightsError, "q_proj.qzeros: shape is [2, 4]"),
        ("v1", lambda p: edit(p, lambda t: t[f"{Q}scales"].fill_(torch.inf)),
         WeightsError, "finite"),
        ("ordered", lambda p: edit(p, lambda t: t[f"{Q}g_idx"].fill_(7)),
         WeightsError, "group 7"),
        ("v1", lambda p: edit(p, lambda t: t.pop(f"{Q}qweight")), ModelError, "different forms"),
        ("awq", lambda p: section(p, bits=8), ModelError, "bits is 8; permitted: 4"),
        ("awq", lambda p: section(p, version="gemv"), ModelError, "version"),
        ("awq", lambda p: edit(p, lambda t: t.pop(f"{Q}scales")), WeightsError, "q_proj.scales"),
        ("awq", lambda p: edit(p, lambda t: cut(t, f"{Q}qzeros", 1, 16)),
         WeightsError, "q_proj.qzeros: shape is [1, 16]"),
        ("awq", lambda p: section(p, quant_method="squeezellm"), ModelError, "quant_method"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(
    tmp_path: Path, name: str, change: Any, error: type[HearthError], says: str
) -> None:
    save(tmp_path, name)
    change(tmp_path)
    with pytest.raises(error) as caught:
        values_of(tmp_path)
    assert says in caught.value.message


def test_a_model_whose_files_are_elsewhere_is_planned_by_its_configuration(tmp_path: Path) -> None:
    """As on a hub: config.json alone says which matrices are codes."""
    save(tmp_path, "v1")
    here = load_model_spec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load_model_spec(tmp_path).program.slots == here.program.slots


def test_packed_weights_are_kept_under_another_key_when_they_are_read_otherwise(
    tmp_path: Path,
) -> None:
    """The bytes of the files stay; what config.json says of them, or how it is read, does not."""
    keys = []
    save(tmp_path, "v1-asym")
    files = [tmp_path / "model.safetensors"]
    for values in ({}, {"bits": 8}, {"group_size": 32}, {"group_size": 16}, {"sym": True}):
        section(tmp_path, **{**PLAIN, "sym": False, **values})
        slots = load_model_spec(tmp_path).program.slots
        keys.append(cache_key(slots, identify(files), "generic"))
    form = next(slot.stored for slot in slots if slot.stored is not None)
    for other in (replace(form, version=2), replace(form, is_ordered=True)):
        changed = tuple(replace(s, stored=s.stored and other) for s in slots)
        keys.append(cache_key(changed, identify(files), "generic"))
    assert len(set(keys)) == len(keys)


def test_a_head_can_be_codes_and_a_table_cannot(tmp_path: Path) -> None:
    section_ = {**PLAIN, "lm_head": True}
    model = build_model(LLAMA)
    pack, _ = EXACT["v1"]
    save_packed(model, tmp_path, pack, section_)
    tensors = load_file(tmp_path / "model.safetensors")
    parts, values = pack(tensors.pop("lm_head.weight").numpy())
    tensors |= {f"lm_head.{name}": part for name, part in parts.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model_spec(tmp_path)
    weights = ReferenceWeights(loaded.program)
    load_weights(loaded, weights)
    assert np.array_equal(weights[loaded.spec.head].numpy(), values)
    table = next(s for s in loaded.program.slots if s.kind is SlotKind.TABLE)
    assert table.stored is None


def add_biases(path: Path, value: float) -> list[str]:
    """As AutoGPTQ does, to every matrix of codes; the first one's last element is `value`."""
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    names = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    for name in names:
        rows = tensors[f"{name}.scales"].shape[1]
        tensors[f"{name}.bias"] = torch.zeros(rows, dtype=torch.float16)
    tensors[f"{names[0]}.bias"][-1] = value
    save_file(tensors, file, {"format": "pt"})
    return names


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_biases_of_zeros_that_no_architecture_has_are_left_out_in_one_line(
    tmp_path: Path, value: float
) -> None:
    expected = save(tmp_path, "v1")
    names = add_biases(tmp_path, value)
    _, report, values = values_of(tmp_path)
    assert values.keys() == expected.keys()
    (warning,) = report.warnings
    assert warning.startswith(f"{len(names)} biases are left out")


def test_biases_that_are_not_zero_and_have_no_place_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, "v1")
    name = add_biases(tmp_path, 0.5)[0]
    with pytest.raises(WeightsError, match=rf"not zero: {name}\.bias"):
        values_of(tmp_path)
