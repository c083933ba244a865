"""bitsandbytes checkpoints against a packer that is written plainly from the format's description.

The library itself is no part of these tests: it is large, and its layouts are few lines.
"""

from __future__ import annotations

import json
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
from tests.support.packers import Pack, four_bits, int8_rows, save_packed

from hearth.core.errors import HearthError, ModelError, WeightsError
from hearth.core.spec import CodesForm
from hearth.kernels.packing import HostTensor
from hearth.models.formats import bitsandbytes_rows
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.weights import map_file

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4"}  # fmt: skip
EIGHT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}
PACKERS: dict[str, Pack] = {
    "nf4": four_bits(),
    "nf4-nested": four_bits(nested=True),
    "fp4": four_bits("fp4"),
    "blocks-over-rows": four_bits(block=512),
}
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]


@pytest.mark.parametrize("name", PACKERS)
def test_values_of_4_bits_are_read_element_by_element(tmp_path: Path, name: str) -> None:
    expected = save_packed(build_model(LLAMA), tmp_path, PACKERS[name], FOUR)
    checkpoint = read_checkpoint(tmp_path)
    maps = {path: map_file(path) for path in checkpoint.files}
    form = CodesForm("bitsandbytes-4bit", 4, 0, symmetric=True)
    for tensor, values in expected.items():
        shape = (values.shape[0], values.shape[1])
        matrix = bitsandbytes_rows.matrix(form, tensor, checkpoint, shape)
        rows = [matrix.read(first, 1, maps) for first in (0, 3, shape[0] - 1)]
        found = np.stack([r.data.view(np.float32) for r in rows if isinstance(r, HostTensor)])
        assert np.array_equal(found, values.numpy()[[0, 3, shape[0] - 1]]), tensor


@pytest.mark.parametrize("case", [LLAMA, GLM4], ids=lambda case: case.family)
@pytest.mark.parametrize("name", PACKERS)
def test_4_bits_are_converted_and_say_what_it_cost(
    tmp_path: Path, name: str, case: ModelCase
) -> None:
    section = {**FOUR, "bnb_4bit_quant_type": "fp4" if name == "fp4" else "nf4"}
    expected = save_packed(build_model(case), tmp_path, PACKERS[name], section)
    _, report, values = values_of(tmp_path)
    assert values.keys() == expected.keys()
    errors = [relative_error(values[tensor], expected[tensor].numpy()) for tensor in values]
    assert 0 < max(errors) < 1e-4
    (warning,) = report.warnings
    kind = "FP4" if name == "fp4" else "NF4"
    assert f"{len(expected)} matrices are stored as bitsandbytes {kind}" in warning
    assert float(warning.rpartition(" ")[2]) == pytest.approx(np.mean(errors), rel=0.2)


def test_int8_is_taken_exactly(tmp_path: Path) -> None:
    expected = save_packed(build_model(LLAMA), tmp_path, int8_rows, EIGHT)
    _, report, values = values_of(tmp_path)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], expected[name].numpy()) for name in values)
    assert report.warnings == ()


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("is_int8", [True, False], ids=["int8", "nf4"])
def test_logits_are_those_of_what_was_kept(tmp_path: Path, is_int8: bool, executor: str) -> None:
    pack, section = (int8_rows, EIGHT) if is_int8 else (four_bits(), FOUR)
    save_packed(build_model(LLAMA), tmp_path, pack, section)
    kept = {name: torch.from_numpy(value) for name, value in values_of(tmp_path)[2].items()}
    expected = expected_logits(LLAMA, kept, TOKENS)
    found = logits_of(tmp_path, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("is_int8", [True, False], ids=["int8", "nf4"])
def test_a_model_whose_files_are_elsewhere_is_planned_by_its_configuration(
    tmp_path: Path, is_int8: bool
) -> None:
    pack, section = (int8_rows, EIGHT) if is_int8 else (four_bits(), FOUR)
    save_packed(build_model(LLAMA), tmp_path, pack, section)
    here = load_model_spec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load_model_spec(tmp_path).program.slots == here.program.slots


def edit(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def section(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(values)
    (path / "config.json").write_text(json.dumps(config))


OUT = "model.layers.0.self_attn.o_proj.weight"
STATE = f"{OUT}.quant_state.bitsandbytes__nf4"


def state(tensors: dict[str, torch.Tensor], **values: Any) -> None:
    held = json.loads(bytes(tensors[STATE].numpy()))
    text = json.dumps({**held, **values}).encode()
    tensors[STATE] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p: section(p, load_in_8bit=True), ModelError, "load_in_4bit"),
        (lambda p: section(p, bnb_4bit_quant_type="af4"), ModelError, "bnb_4bit_quant_type"),
        (lambda p: edit(p, lambda t: state(t, shape=[64, 256])),
         WeightsError, "shape is [64, 256]"),
        (lambda p: edit(p, lambda t: state(t, blocksize=0)), WeightsError, "blocksize is 0"),
        (lambda p: edit(p, lambda t: state(t, blocksize=128)), WeightsError, "blocks of 128"),
        (lambda p: edit(p, lambda t: t[STATE].fill_(65)), WeightsError, "no JSON"),
        (lambda p: edit(p, lambda t: t.pop(f"{OUT}.absmax")), WeightsError, "weight.absmax"),
        (lambda p: edit(p, lambda t: t.pop(f"{OUT}.quant_map")), WeightsError, "weight.quant_map"),
        (lambda p: edit(p, lambda t: t.pop(f"{OUT}.nested_absmax")), WeightsError, "nested_absmax"),
        (lambda p: edit(p, lambda t: t.update({OUT: t[OUT][:-1].clone()})),
         WeightsError, "shape is [8191, 1]"),
        (lambda p: edit(p, lambda t: t[f"{OUT}.nested_absmax"].fill_(torch.nan)),
         WeightsError, "not finite"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(
    tmp_path: Path, change: Any, error: type[HearthError], says: str
) -> None:
    save_packed(build_model(LLAMA), tmp_path, four_bits(nested=True), FOUR)
    change(tmp_path)
    with pytest.raises(error) as caught:
        values_of(tmp_path)
    assert says in caught.value.message
