"""FP8 checkpoints against compressed-tensors and torch: every element, whatever the dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.compressed import Form, save_compressed, values_by_library
from tests.support.executors import NAMES
from tests.support.foreign import GLM4, LLAMA, expected_logits, logits_of, relative_error
from tests.support.hf_models import ModelCase, build_model
from tests.support.packers import save_packed

from hearth.core.errors import HearthError, ModelError, WeightsError
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.e4m3 import e4m3_values
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import LoadReport, load_weights

FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
FORMS = {
    "channel": {**FP8, "strategy": "channel"},
    "tensor": {**FP8, "strategy": "tensor"},
    "block": {**FP8, "strategy": "block", "block_structure": [64, 32]},
    "group": {**FP8, "strategy": "group", "group_size": 32},
}
# With rounded activations the library calls the same files float-quantized, else naive-quantized.
INPUTS = {**FP8, "strategy": "token", "dynamic": True}
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
          "weight_block_size": [48, 64]}  # fmt: skip


def float_values(path: Path, dtype: str) -> tuple[LoadedSpec, LoadReport, dict[str, torch.Tensor]]:
    """Every matrix in FP8 as it is served."""
    loaded = load_model_spec(path, dtype)
    weights = ReferenceWeights(loaded.program)
    report = load_weights(loaded, weights)
    found: dict[str, Any] = {}
    for slot in loaded.program.slots:
        row = 0
        for source in slot.sources if slot.stored is not None else ():
            count = source.num_rows or slot.total_rows
            part = found.setdefault(source.tensor, {})
            part[source.first_row] = weights[slot.name][row : row + count]
            row += count
    return loaded, report, {n: torch.cat([p[k] for k in sorted(p)]) for n, p in found.items()}


def deepseek(rows: int, cols: int, scale: str = "_scale_inv") -> Any:
    """A packer of blocks, 0 for all, in torch's own type."""

    def pack(weight: Any) -> Any:
        values = torch.from_numpy(weight)
        high, wide = rows or values.shape[0], cols or values.shape[1]
        codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(-(-values.shape[0] // high), -(-values.shape[1] // wide))
        restored = torch.empty(values.shape)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
                scales[i, j] = values[part].abs().max() / 448
                codes[part] = (values[part] / scales[i, j]).to(torch.float8_e4m3fn)
                restored[part] = codes[part].float() * scales[i, j]
        held = scales if rows or cols else scales.reshape(())
        return {"": codes, scale: held}, restored.numpy()

    return pack


def check(path: Path, expected: dict[str, torch.Tensor], dtype: str) -> LoadReport:
    """Every matrix is what the file has, and takes a byte for each weight."""
    loaded, report, found = float_values(path, dtype)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert torch.equal(values, expected[name].float()), name
    assert all(s.quant.is_float for s in loaded.program.slots if s.stored is not None)
    assert report.warnings == ()
    return report


def check_converted(path: Path, expected: dict[str, torch.Tensor], dtype: str) -> None:
    """Every matrix is rounded to the model's own floating point, and a warning says so."""
    _, report, found = float_values(path, dtype)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        wanted = expected[name].float()
        if dtype == "bfloat16":
            wanted = wanted.to(torch.bfloat16).float()
        assert torch.equal(values, wanted), name
    (warning,) = report.warnings
    assert "FP8 (e4m3" in warning
    assert f"kept as {dtype}" in warning
    told = float(warning.rpartition(" ")[2])
    if dtype == "float32":
        assert told == 0
    else:
        rounded = [relative_error(v.to(torch.bfloat16).float(), v) for v in expected.values()]
        assert told == pytest.approx(np.mean(rounded), rel=0.2)
        assert told < 1e-5


def test_every_byte_stands_for_what_torch_says() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(e4m3_values(), expected, equal_nan=True)
    assert np.array_equal(np.signbit(e4m3_values()[:255]), np.signbit(expected[:255]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_what_compressed_tensors_writes_is_read_element_by_element(
    tmp_path: Path, form: str, dtype: str
) -> None:
    forms = (Form(("Linear",), FORMS[form], INPUTS if dtype == "float32" else None),)
    save_compressed(build_model(LLAMA), tmp_path, forms, ["lm_head"])
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    name = "float-quantized" if dtype == "float32" else "naive-quantized"
    assert {group["format"] for group in config["config_groups"].values()} == {name}
    check(tmp_path, values_by_library(tmp_path), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_that_no_group_of_a_kernel_divides_are_converted(tmp_path: Path, dtype: str) -> None:
    section = {**BLOCKS, "weight_block_size": [48, 40]}
    values = save_packed(build_model(LLAMA), tmp_path, deepseek(48, 40), section)
    check_converted(tmp_path, values, dtype)


@pytest.mark.parametrize("case", [LLAMA, GLM4], ids=lambda case: case.family)
@pytest.mark.parametrize(
    ("pack", "section"),
    [
        (deepseek(48, 64), BLOCKS),
        (deepseek(128, 128), {**BLOCKS, "weight_block_size": [128, 128]}),
        (deepseek(32, 96), {**BLOCKS, "weight_block_size": [32, 96]}),
        (deepseek(64, 256), {**BLOCKS, "weight_block_size": [64, 256]}),
        (deepseek(0, 0, "_scale"), {"quant_method": "fp8", "activation_scheme": "static"}),
    ],
    ids=["blocks", "blocks-128", "blocks-of-three-groups", "wider-than-the-rows", "tensor"],
)
def test_fp8_without_compressed_tensors_is_read_element_by_element(
    tmp_path: Path, case: ModelCase, pack: Any, section: dict[str, Any]
) -> None:
    check(tmp_path, save_packed(build_model(case), tmp_path, pack, section), "float32")


@pytest.mark.parametrize("executor", NAMES)
def test_logits_are_those_of_the_dequantized_model(tmp_path: Path, executor: str) -> None:
    values = save_packed(build_model(LLAMA), tmp_path, deepseek(48, 64), BLOCKS)
    expected = expected_logits(LLAMA, values, TOKENS)
    found = logits_of(tmp_path, executor, TOKENS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_it_may_be_quantized_when_that_is_asked_for(tmp_path: Path) -> None:
    """FP8 is floating point: int8 of it is what int8 of the dequantized model would be."""
    values = save_packed(build_model(LLAMA), tmp_path / "fp8", deepseek(48, 64), BLOCKS)
    model = build_model(LLAMA)
    model.load_state_dict(values, strict=False)
    model.save_pretrained(tmp_path / "plain")
    packed = []
    for name in ("fp8", "plain"):
        loaded = load_model_spec(tmp_path / name, quantize="int8")
        weights = CpuWeights(loaded.program)
        assert load_weights(loaded, weights).warnings == ()
        packed.append([weights.packed(slot).tobytes() for slot in loaded.program.slots])
    assert packed[0] == packed[1]


def edit(path: Path, change: Any) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def section(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(values)
    (path / "config.json").write_text(json.dumps(config))


OUT = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p: section(p, fmt="e5m2"), ModelError, "fmt"),
        (lambda p: section(p, weight_block_size=[0, 64]), ModelError, "weight_block_size"),
        (lambda p: section(p, weight_block_size=64), ModelError, "weight_block_size"),
        (lambda p: section(p, weight_block_size=[64, 64]), WeightsError, "_scale_inv: shape is"),
        (lambda p: edit(p, lambda t: t.pop(f"{OUT}_scale_inv")), WeightsError, "dtype is F8_E4M3"),
        (lambda p: edit(p, lambda t: t.update({OUT: t[OUT].to(torch.int8)})),
         WeightsError, "dtype is I8"),
        (lambda p: edit(p, lambda t: t[OUT].view(torch.uint8).fill_(127)),
         WeightsError, "not finite"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(
    tmp_path: Path, change: Any, error: type[HearthError], says: str
) -> None:
    save_packed(build_model(LLAMA), tmp_path, deepseek(48, 64), BLOCKS)
    change(tmp_path)
    with pytest.raises(error) as caught:
        float_values(tmp_path, "float32")
    assert says in caught.value.message
