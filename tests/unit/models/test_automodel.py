"""What is read from a model without its weights, and what is refused, with its name and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.fallback_models import tiny_config
from transformers import masking_utils

from hearth.core.config import DeviceConfig
from hearth.core.errors import ConfigError, KernelError, ModelError, UnknownArchitectureError
from hearth.engine import executor as engine_executor
from hearth.models import automodel
from hearth.models.automodel.attention import MAX_TILE, MIN_TILE, tile_keys
from hearth.models.automodel.load import LoadRequest, load_automodel_spec
from hearth.models.automodel.mask import causal_window
from hearth.models.automodel.spec import AutoModelSpec
from hearth.models.config_json import read_config

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 99,
}
REQUEST = LoadRequest("auto", 16, 4)


def spec_of(path: Path, config: Any, request: LoadRequest = REQUEST) -> AutoModelSpec:
    config.save_pretrained(path)
    return load_automodel_spec(read_config(path), path, request)


def config_of(model_type: str, architecture: str, **sizes: Any) -> Any:
    config = tiny_config(model_type, **(sizes or SIZES))
    config.architectures = [architecture]
    return config


@pytest.mark.parametrize("window", [0, 1, 2, 7, 64, 99])
def test_causal_and_windowed_masks_are_told(window: int) -> None:
    predicate: Any = (
        masking_utils.sliding_window_causal_mask_function(window)
        if window
        else masking_utils.causal_mask_function
    )
    assert causal_window(predicate, 100) == window


@pytest.mark.parametrize(
    "predicate",
    [
        lambda b, h, q, k: torch.ones_like(k, dtype=torch.bool),
        lambda b, h, q, k: (k <= q) & (k // 10 == q // 10),
        lambda b, h, q, k: (k <= q) | (k < 5),
        lambda b, h, q, k: (k <= q) & ((q - k) % 2 == 0),
        lambda b, h, q, k: k < q,
        lambda b, h, q, k: torch.zeros_like(k, dtype=torch.bool),
    ],
    ids=["bidirectional", "chunks", "prefix", "dilated", "not itself", "nothing"],
)
def test_other_masks_are_not_taken_for_windows(predicate: Any) -> None:
    assert causal_window(predicate, 100) is None


def test_layers_groups_and_memory_come_from_the_model_itself(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        **SIZES,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "sliding_window": 20,
    }
    sizes["layer_types"] = ["sliding_attention", "full_attention"] * 2
    spec = spec_of(tmp_path, config_of("cohere2", "Cohere2ForCausalLM", **sizes))
    shapes = [(g.num_layers, g.num_kv_heads, g.head_dim, g.window) for g in spec.program.kv_groups]
    assert shapes == [(2, 2, 16, 20), (2, 2, 16, 0)]
    assert spec.kv_places() == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert spec.vocab_size == 99
    weights = next(item for item in spec.fixed_memory if item.name == "weights")
    num_parameters = 99 * 64 + 64 + 4 * (64 + 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    # The buffers of the rotation, and nothing else, come on top.
    assert 0 <= weights.num_bytes - 4 * num_parameters <= 4 * 64


def test_a_window_is_for_models_without_one(tmp_path: Path) -> None:
    request = LoadRequest("auto", 16, 4, window=8)
    spec = spec_of(tmp_path, config_of("olmo2", "Olmo2ForCausalLM"), request)
    assert [group.window for group in spec.program.kv_groups] == [8]
    sizes = {**SIZES, "sliding_window": 20}
    with pytest.raises(ConfigError, match="sliding window of their own"):
        spec_of(tmp_path, config_of("cohere2", "Cohere2ForCausalLM", **sizes), request)


@pytest.mark.parametrize(
    ("model_type", "architecture", "why"),
    [
        ("bloom", "BloomForCausalLM", "position_ids"),
        ("gptj", "GPTJForCausalLM", "attention interface"),
        ("bert", "BertLMHeadModel", "neither causal nor a sliding window"),
        ("bart", "BartForConditionalGeneration", "encoder-decoder"),
        ("mamba2", "Mamba2ForCausalLM", ""),
        ("olmo2", "Olmo2ForSequenceClassification", "would build Olmo2ForCausalLM"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_name(
    tmp_path: Path, model_type: str, architecture: str, why: str
) -> None:
    config = config_of(model_type, architecture, num_hidden_layers=2)
    with pytest.raises(UnknownArchitectureError) as caught:
        spec_of(tmp_path, config)
    assert architecture in caught.value.message
    assert why in caught.value.message


def test_layers_that_are_no_attention_are_named(tmp_path: Path) -> None:
    config = config_of("olmo2", "Olmo2ForCausalLM")
    config.save_pretrained(tmp_path)
    edit(tmp_path, layer_types=["full_attention", "linear_attention"])
    with pytest.raises(UnknownArchitectureError, match="linear_attention"):
        load_automodel_spec(read_config(tmp_path), tmp_path, REQUEST)


def test_frequencies_that_depend_on_company_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = config_of("olmo2", "Olmo2ForCausalLM", **SIZES, rope_parameters=rope)
    with pytest.raises(UnknownArchitectureError, match="dynamic"):
        spec_of(tmp_path, config)


def test_scales_by_places_within_a_step_are_refused(tmp_path: Path) -> None:
    """All layers full and without RoPE: nothing else about this Llama 4 would be refused."""
    values = {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 2,
        "layer_types": ["full_attention"] * 2,
        "no_rope_layers": [0, 0],
        "pad_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnknownArchitectureError, match="attn_temperature_tuning"):
        load_automodel_spec(read_config(tmp_path), tmp_path, REQUEST)


def test_code_from_the_directory_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    values = {"architectures": ["EvilForCausalLM"], "model_type": "evil", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnknownArchitectureError, match="EvilForCausalLM"):
        load_automodel_spec(read_config(tmp_path), tmp_path, REQUEST)


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    config_of("olmo2", "Olmo2ForCausalLM").save_pretrained(tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantization_config"):
        load_automodel_spec(read_config(tmp_path), tmp_path, REQUEST)


def test_without_the_packages_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_of("olmo2", "Olmo2ForCausalLM").save_pretrained(tmp_path)
    monkeypatch.setattr(automodel, "missing_packages", lambda: ("transformers",))
    with pytest.raises(UnknownArchitectureError) as caught:
        engine_executor.choose_backend(DeviceConfig(), tmp_path)
    assert "pip install 'hearth[torch]'" in str(caught.value)
    assert "Olmo2ForCausalLM" in str(caught.value)
    with pytest.raises(KernelError, match="transformers is not installed"):
        engine_executor.choose_backend(DeviceConfig(executor="automodel"), tmp_path)


def test_only_an_unknown_architecture_is_run_that_way_by_itself(tmp_path: Path) -> None:
    config_of("olmo2", "Olmo2ForCausalLM").save_pretrained(tmp_path)
    chosen = engine_executor.choose_backend(DeviceConfig(), tmp_path)
    assert chosen.name == "automodel"
    assert "no family file for Olmo2ForCausalLM" in chosen.warning
    with pytest.raises(UnknownArchitectureError, match="Olmo2ForCausalLM"):
        engine_executor.choose_backend(DeviceConfig(executor="reference"), tmp_path)
    edit(tmp_path, architectures=["LlamaForCausalLM"])
    assert engine_executor.choose_backend(DeviceConfig(), tmp_path).name != "automodel"


def test_tiles_keep_the_scores_small() -> None:
    assert tile_keys(1) == MAX_TILE
    assert tile_keys(1 << 30) == MIN_TILE
    assert MIN_TILE < tile_keys(1 << 14) < MAX_TILE


def edit(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
