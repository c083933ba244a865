"""How keys and values are stored: what may be asked for, what it takes, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import CacheConfig, EngineConfig, ModelConfig
from hearth.core.errors import CapacityError, ConfigError
from hearth.core.spec import KvDType
from hearth.core.units import MIB
from hearth.engine import planning
from hearth.engine.executor import BackendChoice
from hearth.engine.kv_storage import KV_CACHE_DTYPES, OFFERED
from hearth.engine.outlook import Load, Site, outlooks
from hearth.engine.planning import PlannedModel, plan_model
from hearth.engine.settings import check_settings
from hearth.host.fit import sequence_bytes
from hearth.host.memory import HostMemory, MemoryFact
from hearth.models.loader import load_model_spec

CPU = BackendChoice("cpu", "test")
REFERENCE = BackendChoice("reference", "no compiler")
ODD: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "hidden_size": 60,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 15,
    "partial_rotary_factor": 0.8,
    "num_hidden_layers": 1,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def config_of(kv_dtype: str, model: str = str(TEXT_MODEL_DIR), **settings: Any) -> EngineConfig:
    return EngineConfig(ModelConfig(model, **settings), CacheConfig(dtype=kv_dtype))


def plan(
    monkeypatch: pytest.MonkeyPatch,
    config: EngineConfig,
    available_bytes: int = 1 << 40,
    backend: BackendChoice = CPU,
) -> PlannedModel:
    memory = HostMemory((MemoryFact(available_bytes, "a test"),))
    monkeypatch.setattr(planning, "read_memory", lambda: memory)
    return plan_model(backend, config, 2)


def said(planned: PlannedModel) -> str:
    (choice,) = [c for c in planned.choices if c.name == "kv_cache_dtype"]
    return f"{choice.value} ({choice.reason})"


@pytest.mark.parametrize("quantize", ["none", "int8", "auto"])
def test_by_itself_it_is_the_weights_float_type_and_says_so(
    monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    planned = plan(monkeypatch, config_of("auto", quantize=quantize))
    assert planned.fitted.kv.dtype == "bfloat16"
    assert said(planned).startswith("bfloat16, 1.50 KiB a token (auto: as the weights' float type")
    wide = plan(monkeypatch, config_of("auto", dtype="float32"))
    assert wide.fitted.kv.dtype == "float32"
    assert "3.00 KiB a token" in said(wide)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("int8", "int8"),
        ("int4", "int4"),
        ("fp8", "fp8"),
        ("fp8_e4m3", "fp8"),
    ],
)
@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_what_is_asked_for_is_planned_and_told(
    monkeypatch: pytest.MonkeyPatch, name: str, stored: str, quantize: str
) -> None:
    planned = plan(monkeypatch, config_of(name, quantize=quantize))
    assert planned.fitted.kv.dtype == stored
    assert said(planned).startswith(f"{stored}, ")
    assert "--kv-cache-dtype" in said(planned)
    assert ("docs/kv-cache.md" in said(planned)) == (stored != "bfloat16")


def test_smaller_keys_and_values_take_less_memory_by_the_same_arithmetic() -> None:
    loaded = load_model_spec(TEXT_MODEL_DIR)
    sizes = {
        dtype: sequence_bytes(
            planning.fit_request(CPU, config_of(dtype), loaded, 2), loaded.max_position_embeddings
        )
        for dtype in ("bf16", "int8", "fp8", "int4")
    }
    head_dim = loaded.program.kv_groups[0].head_dim
    of_head = {d: sizes[d] * 4 * head_dim // sizes["bf16"] for d in sizes}
    assert of_head["int8"] == of_head["fp8"] == 2 * head_dim + 4
    assert of_head["int4"] == head_dim + 2 + 2 * -(-head_dim // 64)


def test_where_a_context_does_not_fit_smaller_ones_are_offered_with_what_they_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("auto", max_model_len=4096)
    config = replace(config, cache=replace(config.cache, memory_bytes=2 * MIB))
    with pytest.raises(CapacityError) as caught:
        plan(monkeypatch, config)
    hint = caught.value.hint or ""
    assert "--kv-cache-dtype int8 allows " in hint
    assert "--kv-cache-dtype int4 allows 4,096 tokens" in hint
    int8 = replace(config, cache=replace(config.cache, dtype="int8"))
    with pytest.raises(CapacityError) as caught:
        plan(monkeypatch, int8)
    assert "int8 allows" not in (caught.value.hint or "")
    int4 = replace(config, cache=replace(config.cache, dtype="int4"))
    assert plan(monkeypatch, int4).fitted.limits.max_model_len == 4096


def test_a_reduced_context_says_what_smaller_keys_and_values_would_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("auto")
    config = replace(config, cache=replace(config.cache, memory_bytes=2 * MIB))
    planned = plan(monkeypatch, config)
    (choice,) = [c for c in planned.fitted.choices if c.name == "max_model_len"]
    assert "--kv-cache-dtype int8 allows" in choice.reason


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_codes_need_the_kernels(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ConfigError, match=r"codes need the C\+\+ kernels; reference") as caught:
        plan(monkeypatch, config_of(name), backend=REFERENCE)
    assert caught.value.hint == "permitted here: auto, bfloat16"
    planned = plan(monkeypatch, config_of("bf16", dtype="float32"), backend=REFERENCE)
    assert planned.fitted.kv.dtype == "bfloat16"


def test_heads_of_an_odd_width_cannot_be_four_bits_and_the_others_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ODD))
    with pytest.raises(ConfigError, match="heads are 15 wide") as caught:
        plan(monkeypatch, config_of("int4", str(tmp_path)))
    assert caught.value.hint == "permitted here: auto, float32, bfloat16, int8, fp8"
    assert plan(monkeypatch, config_of("int8", str(tmp_path))).fitted.kv.dtype == "int8"


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="is 'q8_0'; permitted: auto, bf16, int8, int4"):
        check_settings(config_of("q8_0"))
    assert set(OFFERED) <= set(KV_CACHE_DTYPES)
    for name in KV_CACHE_DTYPES:
        check_settings(config_of(name))


def test_the_outlook_plans_for_what_was_asked() -> None:
    memory = HostMemory((MemoryFact(1 << 33, "a test"),))
    site = Site(CPU, 2, memory, None)
    load = Load(4096, 4, 1024)
    by_dtype = {name: outlooks(config_of(name), site, load)[0] for name in ("auto", "int8", "int4")}
    assert by_dtype["auto"].kv_bytes > 1.8 * by_dtype["int8"].kv_bytes
    assert by_dtype["int8"].kv_bytes > 1.8 * by_dtype["int4"].kv_bytes
    assert by_dtype["auto"].most_sequences < by_dtype["int8"].most_sequences
    assert KvDType.INT8.is_coded
