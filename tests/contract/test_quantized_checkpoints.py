"""Quantized checkpoints against the library that defines their format, in both directions.

What hearth writes is loaded by transformers, and what compressed-tensors writes by hearth: every
element equal. In float32 a code times its scale is exact, so that there is no tolerance.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from tests.contract.plan_builder import PlanBuilder, teacher_forced
from tests.support.compressed import (
    W8A8_INPUT,
    Form,
    save_compressed,
    values_by_library,
    values_by_transformers,
)
from tests.support.executors import NAMES, Setup, build_executor
from tests.support.foreign import relative_error, values_of
from tests.support.hf_models import ModelCase, build_model
from tools.demo_model import TEXT_MODEL_DIR
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hearth.core.config import CodesConfig
from hearth.core.errors import HearthError, ModelError, WeightsError
from hearth.core.spec import WeightSlot
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights
from hearth.quant.checkpoint import Scheme, quantize_directory

BUILT_IN = Path(__file__).parents[2] / "src" / "hearth" / "demo_model"
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 264,
    "num_hidden_layers": 2,
}
CASES = {
    "llama": ModelCase("llama", "llama", 3, SIZES),
    "llama-sharded": ModelCase("llama-sharded", "llama", 3, SIZES, max_shard_size="200KB"),
    "glm4": ModelCase("glm4", "glm4", 5, SIZES),
    "phi3": ModelCase("phi3", "phi3", 7, SIZES),
    "qwen2-tied": ModelCase("qwen2-tied", "qwen2", 2, {**SIZES, "tie_word_embeddings": True}),
    "mixtral": ModelCase("mixtral", "mixtral", 4,
                         {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip
W4 = {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": True}
FORMS = {
    "w4a16": (Form(("Linear",), W4),),
    "w4a16-asym": (Form(("Linear",), {**W4, "symmetric": False}),),
    "w8a16-g32": (Form(("Linear",), {**W4, "num_bits": 8, "group_size": 32}),),
    "w8a16-asym": (Form(("Linear",), {**W4, "num_bits": 8, "symmetric": False}),),
    "w8a16-channel": (Form(("Linear",), {"num_bits": 8, "strategy": "channel"}),),
    "w4a16-channel": (Form(("Linear",), {"num_bits": 4, "strategy": "channel"}),),
    "w8a8": (Form(("Linear",), {"num_bits": 8, "strategy": "channel"}, W8A8_INPUT),),
    "mixed": (
        Form((r"re:.*mlp\..*",), {**W4, "symmetric": False}),
        Form(("Linear",), {**W4, "num_bits": 8, "group_size": 128}),
    ),
    "embedding-too": (Form(("Linear",), W4), Form(("Embedding",), {**W4, "symmetric": False})),
}


def save(case: ModelCase, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    model = build_model(case).to(dtype)
    model.save_pretrained(path, max_shard_size=case.max_shard_size)
    return path


def loaded_values(path: Path) -> tuple[LoadedSpec, ReferenceWeights]:
    loaded = load_model_spec(path, "float32")
    weights = ReferenceWeights(loaded.program)
    load_weights(loaded, weights)
    return loaded, weights


def rows_of(weights: ReferenceWeights, slot: WeightSlot) -> dict[str, torch.Tensor]:
    """The rows of a slot by the checkpoint tensor that they came from."""
    found, row = {}, 0
    for source in slot.sources:
        count = source.num_rows or slot.total_rows
        found[source.tensor] = weights[slot.name][row : row + count]
        row += count
    return found


def assert_same_values(path: Path, expected: dict[str, torch.Tensor]) -> int:
    """Every stored matrix equals what others decompress; how many there are."""
    loaded, weights = loaded_values(path)
    stored = [slot for slot in loaded.spec.slots if slot.stored is not None]
    for slot in stored:
        for tensor, rows in rows_of(weights, slot).items():
            source = next(s for s in slot.sources if s.tensor == tensor)
            whole = expected[tensor]
            assert torch.equal(
                rows, whole[source.first_row : source.first_row + len(rows)].float()
            ), tensor
    return len(stored)


def packed(path: Path, **settings: Any) -> dict[str, bytes]:
    loaded = load_model_spec(path, **settings)
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights)
    return {slot.name: weights.packed(slot).tobytes() for slot in loaded.program.slots}


@pytest.mark.parametrize("name", ["llama-sharded", "glm4", "phi3", "qwen2-tied"])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("zero_points", [False, True], ids=["symmetric", "zero-points"])
def test_what_hearth_writes_transformers_reads_bit_for_bit(
    tmp_path: Path, name: str, scheme: str, zero_points: bool
) -> None:
    source = save(CASES[name], tmp_path / "source")
    target = tmp_path / "target"
    codes = CodesConfig(zero_points=zero_points)
    quantize_directory(source, target, Scheme(scheme, codes), lambda *_: None)
    assert assert_same_values(target, values_by_library(target)) >= 8
    if not zero_points:
        expected = values_by_transformers(target, AutoModelForCausalLM)
        assert assert_same_values(target, expected) >= 8
    # And it is served as the source would be, to the last bit.
    served = packed(source, quantize=scheme, codes=codes)
    assert packed(target, quantize=scheme, codes=codes) == served


def test_experts_that_lie_apart_become_codes(tmp_path: Path) -> None:
    source = save(CASES["mixtral"], tmp_path / "source")
    target = tmp_path / "target"
    scheme = Scheme("int4", CodesConfig())
    quantize_directory(source, target, scheme, lambda *_: None)
    assert packed(target, quantize="int4") == packed(source, quantize="int4")
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert any("gate" in name for name in config["ignore"])  # the routers


@pytest.mark.parametrize(
    ("source", "cls"),
    [(TEXT_MODEL_DIR, AutoModelForCausalLM), (BUILT_IN, AutoModelForImageTextToText)],
    ids=["text", "vision"],
)
def test_the_trained_models_round_trip(tmp_path: Path, source: Path, cls: Any) -> None:
    quantize_directory(source, tmp_path / "q", Scheme("int4", CodesConfig()), lambda *_: None)
    expected = values_by_transformers(tmp_path / "q", cls)
    assert assert_same_values(tmp_path / "q", expected) >= 20
    assert packed(tmp_path / "q", quantize="int4") == packed(source, quantize="int4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_what_compressed_tensors_writes_hearth_reads_bit_for_bit(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    model = build_model(CASES["llama"]).to(dtype)
    save_compressed(model, tmp_path, FORMS[form], ["lm_head"])
    assert assert_same_values(tmp_path, values_by_library(tmp_path)) >= 8
    loaded = load_model_spec(tmp_path)
    wide = {slot.quant.wide_scales for slot in loaded.program.slots if slot.stored is not None}
    assert wide == {dtype != torch.bfloat16}


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("form", ["w4a16", "w4a16-asym", "w8a8", "mixed", "embedding-too"])
def test_logits_are_those_of_transformers(tmp_path: Path, form: str, executor: str) -> None:
    """Rows stay float32, as in transformers; measured: up to 2e-6 of the largest logit."""
    model = build_model(CASES["llama"])
    forms = tuple(replace(f, inputs=None) for f in FORMS[form])
    save_compressed(model, tmp_path, forms, ["lm_head"])
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]
    reference = build_model(CASES["llama"])
    reference.load_state_dict(values_by_library(tmp_path), strict=False)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    loaded = load_model_spec(tmp_path, "float32", codes=CodesConfig("float32"))
    built = build_executor(executor, Setup(loaded))
    (logits,) = teacher_forced(built, PlanBuilder(16, 256), [tokens], 17)
    built.close()
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def with_outliers(model: Any) -> Any:
    """The same function: one channel is large between a norm and what reads it."""
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.data[5] *= 300
        for reader in (layer.mlp.gate_proj, layer.mlp.up_proj):
            reader.weight.data[:, 5] /= 300
    return model


@pytest.mark.parametrize("executor", NAMES)
def test_residuals_keep_a_checkpoint_of_codes_from_outliers(tmp_path: Path, executor: str) -> None:
    """Against float32 rows on the same codes: int8 ones lose what stands beside the outlier."""
    model = with_outliers(build_model(CASES["llama"]))
    forms = tuple(replace(form, inputs=None) for form in FORMS["w8a8"])
    save_compressed(model, tmp_path, forms, ["lm_head"])
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 264, 40)]
    logits = {}
    for rows in ("float32", "int8", "int8-residual"):
        loaded = load_model_spec(tmp_path, "float32", codes=CodesConfig(rows))
        built = build_executor(executor, Setup(loaded))
        (logits[rows],) = teacher_forced(built, PlanBuilder(16, 256), [tokens], 17)
        built.close()
    lost = {rows: np.abs(logits[rows] - logits["float32"]).max() for rows in logits}
    assert 0 < lost["int8-residual"] < 0.5 * lost["int8"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_in_the_order_of_activations_are_converted(tmp_path: Path, symmetric: bool) -> None:
    """`actorder: group`, which the library wrote until it was removed: by hand."""
    form = Form(("Linear",), {**W4, "symmetric": symmetric})
    save_compressed(build_model(CASES["llama"]), tmp_path, (form,), ["lm_head"])
    expected = values_by_library(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, values in expected.items():
        cols = values.shape[1]
        groups = torch.randperm(cols, generator=torch.Generator().manual_seed(cols)) // 64
        tensors[f"{name}_g_idx"] = groups.to(torch.int32)
        scales, zeros = tensors[f"{name}_scale"].float(), torch.zeros(values.shape[0], cols // 64)
        if not symmetric:
            packed_zeros = tensors[f"{name}_zero_point"]
            zeros = unpack_from_int32(packed_zeros, 4, zeros.shape, packed_dim=0).float()
        neighbours = torch.arange(cols) // 64
        codes = (values / scales[:, neighbours]).round() + zeros[:, neighbours]
        expected[name] = (codes - zeros[:, groups]) * scales[:, groups]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    set_weights(config["quantization_config"], actorder="group")
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, report, found = values_of(tmp_path)
    assert found.keys() == expected.keys()
    errors = [relative_error(found[name], expected[name].numpy()) for name in found]
    assert 0 < max(errors) < 1e-4
    assert "in the order of activations (4 bits, groups of 64)" in report.warnings[0]
    set_weights(config["quantization_config"], actorder=None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="has no actorder"):
        values_of(tmp_path)


def damaged(path: Path, change: Any) -> Path:
    """A good int4 checkpoint whose config's section was changed."""
    quantize_directory(TEXT_MODEL_DIR, path, Scheme("int4", CodesConfig()), lambda *_: None)
    config = json.loads((path / "config.json").read_text())
    change(config["quantization_config"])
    (path / "config.json").write_text(json.dumps(config))
    return path


def set_weights(section: Any, **values: Any) -> None:
    for group in section["config_groups"].values():
        group["weights"].update(values)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda s: s.update(quant_method="aqlm"), ModelError, "quant_method"),
        (lambda s: s.update(transform_config={"a": 1}), ModelError, "transform_config"),
        (lambda s: s.pop("config_groups"), ModelError, "config_groups is missing"),
        (lambda s: set_weights(s, num_bits=3), ModelError, "num_bits is 3"),
        (lambda s: set_weights(s, type="float"), ModelError, 'type is "float"'),
        (lambda s: set_weights(s, group_size=16), ModelError, "group_size is 16"),
        (lambda s: set_weights(s, strategy="tensor"), ModelError, "strategy"),
        (lambda s: set_weights(s, group_size=32), WeightsError, "_scale: shape is"),
        (lambda s: set_weights(s, num_bits=8), WeightsError, "_packed: shape is"),
        (lambda s: set_weights(s, symmetric=False), WeightsError, "_zero_point"),
        (lambda s: s["config_groups"]["group_0"].update(targets=["re:("]), ModelError, "regular"),
        (lambda s: s["config_groups"]["group_0"].update(targets=["x"]), ModelError, "no group for"),
        (lambda s: s.update(format="marlin-24") or s["config_groups"]["group_0"].pop("format"),
         ModelError, "format"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_the_files_is_refused(
    tmp_path: Path, change: Any, error: type[HearthError], says: str
) -> None:
    path = damaged(tmp_path / "q", change)
    with pytest.raises(error) as caught:
        packed(path)
    assert says in caught.value.message
