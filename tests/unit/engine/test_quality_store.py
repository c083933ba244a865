"""The short report: kept where the server looks, of the very model, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.shards import sharded_model

from hearth.core.config import CodesConfig, EngineConfig, ModelConfig, WeightCacheConfig
from hearth.core.errors import ConfigError
from hearth.core.quality import REPORT_FILE, QualitySummary, RoundingLoss
from hearth.engine.quality_store import (
    find_quality,
    kv_dtype_of,
    quality_key,
    quality_path,
    read_quality,
    write_quality,
)
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.quant.checkpoint import quantize_directory, scheme_of

SUMMARY = QualitySummary(
    weights_key="",
    scheme="int4 91 %",
    method="rounded to nearest at load",
    reference="toy (bfloat16 100 %)",
    perplexity=6.1,
    perplexity_change=0.004,
    perplexity_change_error=0.001,
    kl=0.0123,
    kl_999=0.3,
    top1=0.9712,
    text="builtin",
    text_sha256="ab",
    text_bytes=12,
    num_tokens=20_000,
    context=512,
    measured_at="2026-11-28T10:00:00Z",
    hearth_version="0.1.0",
    executor="avx2, 2 threads",
    canary_version=1,
    canary=(1, 2, 3, 4),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model"
    path.mkdir()
    for name, content in sharded_model(1).items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def config(model: Path, tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        ModelConfig(str(model), quantize="int4"),
        weight_cache=WeightCacheConfig(str(tmp_path / "cache")),
    )


def loaded_as(config: EngineConfig) -> LoadedSpec:
    model = config.model
    return load_model_spec(model.path, model.dtype, quantize=model.quantize, codes=model.codes)


def stored(config: EngineConfig) -> Path:
    loaded = loaded_as(config)
    key = quality_key(loaded, kv_dtype_of(config, loaded))
    path = quality_path(loaded, config, key)
    write_quality(path, replace(SUMMARY, weights_key=key))
    return path


def test_what_was_stored_is_found_and_told_in_a_line(config: EngineConfig, tmp_path: Path) -> None:
    path = stored(config)
    assert path.parent == tmp_path / "cache"
    note = find_quality(loaded_as(config), config)
    assert note.summary is not None
    assert replace(note.summary, weights_key="") == SUMMARY
    assert note.choice is not None
    assert note.choice.value == "perplexity +0.40 %, KL 0.012, same best token 97.1 %"
    assert note.choice.reason == "builtin text, 20,000 tokens, 2026-11-28"
    assert not [p for p in path.parent.iterdir() if p != path]  # no draft is left


def test_other_settings_are_another_model(config: EngineConfig) -> None:
    stored(config)
    for codes in (CodesConfig("float32"), CodesConfig(group_size=32)):
        other = replace(config, model=replace(config.model, codes=codes))
        note = find_quality(loaded_as(other), other)
        assert note.summary is None
        assert note.choice is not None
        assert note.choice.value == "not measured"
    other = replace(config, model=replace(config.model, quantize="int8"))
    assert find_quality(loaded_as(other), other).summary is None


def test_what_was_not_measured_says_how_to(config: EngineConfig) -> None:
    exact = replace(config, model=replace(config.model, codes=CodesConfig("float32", 64)))
    choice = find_quality(loaded_as(exact), exact).choice
    assert choice is not None
    model = config.model.path
    assert choice.reason == (
        f"hearth quality '{model}' --quantize int4 --activations float32 "
        "--quantize-group-size 64 --store measures it"
    )
    cache = replace(config.cache, dtype="int8")
    other = replace(config, cache=cache, model=replace(config.model, dtype="float32", window=64))
    told = find_quality(loaded_as(other), other).choice
    assert told is not None
    flags = "--dtype float32 --window 64 --kv-cache-dtype int8 --store"
    assert told.reason == f"hearth quality '{model}' --quantize int4 {flags} measures it"
    plain = replace(config, model=replace(config.model, quantize="none"))
    assert find_quality(loaded_as(plain), plain).choice is None  # nothing is lost


def test_what_rounding_lost_is_said_where_nothing_was_measured(config: EngineConfig) -> None:
    rounding = RoundingLoss({"int4": 0.0091, "int8": 4e-5}, "layers.0.qkv", 0.012)
    choice = find_quality(loaded_as(config), config, rounding).choice
    assert choice is not None
    assert choice.value == rounding.line()
    assert choice.reason.startswith("perplexity not measured: hearth quality ")
    stored(config)
    other = replace(config, model=replace(config.model, codes=CodesConfig("float32")))
    choice = find_quality(loaded_as(other), other, rounding).choice
    assert choice is not None
    assert choice.value == rounding.line()
    choice = find_quality(loaded_as(config), config, rounding).choice
    assert choice is not None
    assert choice.value == SUMMARY.line()  # what was measured says more


def test_codes_of_a_checkpoint_need_to_know_what_they_were_made_from(
    checkpoint: EngineConfig,
) -> None:
    choice = find_quality(loaded_as(checkpoint), checkpoint).choice
    assert choice is not None
    path = checkpoint.model.path
    assert choice.reason == f"hearth quality {path} --against REF --store measures it"


def test_two_names_of_one_precision_are_one(config: EngineConfig) -> None:
    loaded = loaded_as(config)
    for name, own in (("bf16", "bfloat16"), ("fp8_e4m3", "fp8"), ("auto", str(loaded.dtype))):
        assert kv_dtype_of(replace(config, cache=replace(config.cache, dtype=name)), loaded) == own


def changed_weights(model: Path) -> None:
    """Other values in a file of the same size, header and name, as another method writes."""
    for name, content in sharded_model(1, lambda _, data: data[::-1]).items():
        (model / name).write_bytes(content)


def test_changed_weights_are_another_model(config: EngineConfig, model: Path) -> None:
    stored(config)
    changed_weights(model)
    assert find_quality(loaded_as(config), config).summary is None


@pytest.fixture
def checkpoint(model: Path, tmp_path: Path) -> EngineConfig:
    path = tmp_path / "int4"
    quantize_directory(model, path, scheme_of("int4", 64), lambda *_: None)
    return EngineConfig(ModelConfig(str(path)), weight_cache=WeightCacheConfig(str(tmp_path / "c")))


def test_the_report_of_a_quantized_checkpoint_travels_with_it(
    checkpoint: EngineConfig, tmp_path: Path
) -> None:
    path = stored(checkpoint)
    assert path == Path(checkpoint.model.path) / REPORT_FILE
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in path.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    there = replace(checkpoint, model=replace(checkpoint.model, path=str(copy)))
    assert find_quality(loaded_as(there), there).summary is not None


def test_a_report_beside_other_weights_is_not_shown(checkpoint: EngineConfig) -> None:
    path = stored(checkpoint)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "weights_key": "another"}))
    note = find_quality(loaded_as(checkpoint), checkpoint)
    assert note.summary is None
    assert note.choice is not None
    assert "of other weights or settings" in note.choice.reason


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"format": 1}', b'{"format": 2}', b"{" * 5000]
)
def test_a_damaged_report_ends_no_start(config: EngineConfig, content: bytes) -> None:
    path = stored(config)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="quality report"):
        read_quality(path)
    note = find_quality(loaded_as(config), config)
    assert note.summary is None
    assert note.choice is not None
    assert note.choice.value == "not known"


def test_a_report_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written") as error:
        write_quality(tmp_path / "file" / "report.json", SUMMARY)
    assert "--store" in str(error.value.hint)


def test_a_full_disk_leaves_the_report_that_was_there(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(config)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_quality(path, SUMMARY)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_without_a_home_the_place_must_be_named(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    homeless = replace(config, weight_cache=WeightCacheConfig())
    with pytest.raises(ConfigError) as error:
        quality_path(loaded_as(homeless), homeless, "key")
    assert error.value.hint == "set --weight-cache-dir"
    note = find_quality(loaded_as(homeless), homeless)
    assert note.choice is not None
    assert note.choice.value == "not known"
