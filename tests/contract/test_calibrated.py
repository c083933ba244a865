"""GPTQ and AWQ over whole models: what they lose, and that others read what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.test_quantized_checkpoints import (
    BUILT_IN,
    CASES,
    SIZES,
    assert_same_values,
    save,
)
from tests.support.calibration import int4, output_error, quantize, random_text, values_of
from tests.support.compressed import values_by_library, values_by_transformers
from tests.support.hf_models import ModelCase, build_model
from tokenizers import Tokenizer
from tools.demo_model import TEXT_MODEL_DIR
from tools.demo_model.corpus import draw_conversations
from tools.demo_model.tokenizer import Encoder
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hearth.core.config import CodesConfig
from hearth.models.safetensors_file import read_checkpoint
from hearth.quant.calibrated.text import Calibration, sequences_of
from hearth.quant.checkpoint import Scheme

MODELS = {
    **{name: CASES[name] for name in ("llama", "llama-sharded", "glm4", "phi3", "qwen2-tied")},
    "gemma2": ModelCase("gemma2", "gemma2", 3, {**SIZES, "sliding_window": 8}),
    "mixtral": CASES["mixtral"],
}
METHODS = ["gptq", "awq"]
W8A8 = Scheme("int8", CodesConfig(), per_row=True)


def conversations(seed: int, count: int) -> Calibration:
    """Of the small text model's kind."""
    encoder = Encoder(Tokenizer.from_file(str(TEXT_MODEL_DIR / "tokenizer.json")))
    ids: list[int] = []
    for conversation in draw_conversations(seed, 40 * count):
        ids += encoder.encode(conversation).ids
    return sequences_of(ids, "conversations", count, 128)


def check_files(path: Path, cls: Any, *, by_transformers: bool = True) -> None:
    """hearth, compressed-tensors and transformers make the same matrices of a checkpoint."""
    assert assert_same_values(path, values_by_library(path)) >= 6
    if by_transformers:
        assert_same_values(path, values_by_transformers(path, cls))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_it_loses_less_than_rounding_and_all_read_the_same(
    tmp_path: Path, name: str, method: str
) -> None:
    source = save(MODELS[name], tmp_path / "source", torch.float32)
    model = build_model(MODELS[name])
    seen, unseen = random_text(264), random_text(264, 8, seed=1)
    quantize(source, tmp_path / "rtn", "rtn", int4(), seen)
    notes = quantize(source, tmp_path / method, method, int4(), seen)
    assert notes.done == pytest.approx(notes.totals)
    check_files(tmp_path / method, AutoModelForCausalLM, by_transformers=name != "mixtral")
    if name == "mixtral":  # its experts have other names in memory
        return
    ratio = output_error(model, tmp_path / method, unseen)
    ratio /= output_error(model, tmp_path / "rtn", unseen)
    # Random weights have no channels that stand out, which is what AWQ lives on (see below).
    assert ratio < (0.8 if method == "gptq" else 1.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "scheme", [int4(64), int4(32, zero_points=True), W8A8, Scheme("int8", CodesConfig())], ids=str
)
def test_the_trained_model_by_every_scheme(tmp_path: Path, scheme: Scheme, method: str) -> None:
    seen, unseen = conversations(3, 48), conversations(20_261, 16)
    model = AutoModelForCausalLM.from_pretrained(TEXT_MODEL_DIR, dtype=torch.float32)
    quantize(TEXT_MODEL_DIR, tmp_path / "rtn", "rtn", scheme, seen)
    quantize(TEXT_MODEL_DIR, tmp_path / "q", method, scheme, seen)
    has_zeros = scheme.codes.zero_points  # which transformers loses
    check_files(tmp_path / "q", AutoModelForCausalLM, by_transformers=not has_zeros)
    ratio = output_error(model, tmp_path / "q", unseen)
    ratio /= output_error(model, tmp_path / "rtn", unseen)
    assert ratio < (0.5 if method == "gptq" else 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_images_calibrates_its_text_layers(tmp_path: Path, method: str) -> None:
    quantize(BUILT_IN, tmp_path / "q", method, int4(), random_text(264, 4, 32))
    check_files(tmp_path / "q", AutoModelForImageTextToText)
    coded = [n for n in read_checkpoint(tmp_path / "q").tensors if n.endswith("weight_packed")]
    assert any("visual" in name for name in coded)
    assert any("language_model.layers.3" in name for name in coded)


def with_outliers(model: Any, scale: float) -> None:
    """The same function, with channels of large activations behind every norm of a llama."""
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, readers in (
                (layer.input_layernorm, ("q_proj", "k_proj", "v_proj")),
                (layer.post_attention_layernorm, ("gate_proj", "up_proj")),
            ):
                norm.weight[5] *= scale
                owner = layer.self_attn if "q_proj" in readers else layer.mlp
                for reader in readers:
                    getattr(owner, reader).weight[:, 5] /= scale


def test_awq_finds_the_factors_that_outliers_need(tmp_path: Path) -> None:
    """A column that was divided by 50 has hardly a code of its own; its inputs are the largest."""
    model = build_model(CASES["llama"])
    with_outliers(model, 50.0)
    model.save_pretrained(tmp_path / "source")
    seen, unseen = random_text(264), random_text(264, 8, seed=1)
    for method in ("rtn", "awq"):
        notes = quantize(tmp_path / "source", tmp_path / method, method, int4(), seen)
    notices = [note for note in notes.notes if not note.startswith("layers run in")]
    assert notices == []  # every group has found what makes its inputs
    rtn, awq = (output_error(model, tmp_path / method, unseen) for method in ("rtn", "awq"))
    assert awq < 0.8 * rtn
    before = {
        n: e for n, e in values_of(tmp_path / "awq").items() if n.endswith("layernorm.weight")
    }
    gains = model.state_dict()
    assert all(before[name][5] < gains[name][5] for name in before)


def test_rarely_chosen_experts_are_rounded_and_named(tmp_path: Path) -> None:
    source = save(MODELS["mixtral"], tmp_path / "source")
    text = random_text(264, 8, 32)
    notes = quantize(source, tmp_path / "q", "gptq", int4(), text)
    rounded = [note for note in notes.notes if "fewer than" in note]
    assert rounded
    assert "experts" in rounded[0]
    check_files(tmp_path / "q", AutoModelForCausalLM, by_transformers=False)


def test_experts_in_one_tensor_stay_as_they_are(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    case = ModelCase("qwen3_moe", "qwen3_moe", 3, sizes)
    source = save(case, tmp_path / "source")
    tensors = read_checkpoint(source).tensors
    quantize(source, tmp_path / "q", "gptq", int4(), random_text(264, 8, 32))
    assert assert_same_values(tmp_path / "q", values_by_library(tmp_path / "q")) >= 4
    after = read_checkpoint(tmp_path / "q").tensors
    stacked = [name for name, entry in tensors.items() if len(entry.shape) == 3]
    assert all(after[name].shape == tensors[name].shape for name in stacked)


def test_what_is_ignored_is_not_touched(tmp_path: Path) -> None:
    source = save(CASES["llama"], tmp_path / "source")
    for method in ("rtn", *METHODS):
        target = tmp_path / method
        quantize(source, target, method, int4(), random_text(264, 8, 32),
                 r"re:.*layers\.0\.mlp\..*", "lm_head")  # fmt: skip
        checkpoint = read_checkpoint(target).tensors
        assert "lm_head.weight" in checkpoint
        assert "model.layers.0.mlp.down_proj.weight" in checkpoint
        assert "model.layers.1.mlp.down_proj.weight_packed" in checkpoint
        check_files(target, AutoModelForCausalLM)


def test_rows_that_no_group_fills_stay_as_they_are(tmp_path: Path) -> None:
    case = ModelCase("odd", "llama", 3, {**SIZES, "intermediate_size": 100})
    source = save(case, tmp_path / "source")
    for method in METHODS:
        quantize(source, tmp_path / method, method, int4(), random_text(264, 8, 32))
        checkpoint = read_checkpoint(tmp_path / method).tensors
        assert "model.layers.1.mlp.down_proj.weight" in checkpoint
        assert_same_values(tmp_path / method, values_by_library(tmp_path / method))
        values_by_transformers(tmp_path / method, AutoModelForCausalLM)


def test_w8a8_says_that_inputs_are_rounded_a_token_at_a_time(tmp_path: Path) -> None:
    source = save(CASES["llama"], tmp_path / "source")
    quantize(source, tmp_path / "q", "rtn", W8A8, random_text(264))
    section = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert section["format"] == "int-quantized"
    (group,) = section["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }  # fmt: skip
    check_files(tmp_path / "q", AutoModelForCausalLM)


def test_every_layer_reads_what_the_quantized_ones_before_it_write(tmp_path: Path) -> None:
    """The states of a run are those of the finished model."""
    from hearth.models.loader import load_model_spec
    from hearth.quant.calibrated.model import StreamedModel

    source = save(CASES["glm4"], tmp_path / "source", torch.float32)
    text = random_text(264, 2, 16)
    model = build_model(CASES["glm4"])
    streamed = StreamedModel(load_model_spec(source), read_checkpoint(source))
    streamed.begin(text.tokens)
    with torch.no_grad():
        expected = model(torch.from_numpy(text.tokens[1:2]), output_hidden_states=True)
    states = streamed.embedded(1)
    for index in range(streamed.num_layers):
        assert torch.equal(states, expected.hidden_states[index])
        with streamed.layer(index) as layer:
            states = streamed.run(layer, states)
        assert all(tensor.is_meta for tensor in layer.module.parameters())
    with torch.no_grad():
        assert torch.equal(model.model.norm(states), expected.hidden_states[-1])


def test_codes_of_a_layer_are_the_same_whatever_else_is_quantized(tmp_path: Path) -> None:
    """The first layer's query does not know that anything comes behind it."""
    source = save(CASES["llama"], tmp_path / "source")
    text = random_text(264, 8, 32)
    quantize(source, tmp_path / "all", "gptq", int4(), text)
    quantize(source, tmp_path / "one", "gptq", int4(), text, r"re:.*layers\.1\..*")
    name = "model.layers.0.self_attn.q_proj.weight"
    one, both = values_of(tmp_path / "one")[name], values_of(tmp_path / "all")[name]
    assert np.array_equal(one.numpy(), both.numpy())
