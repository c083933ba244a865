"""`--quantize auto`: the most exact scheme that fits, with its reason; else the arithmetic."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.vision_directory import write_directory
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import CacheConfig, CodesConfig, EngineConfig, ImagesConfig, ModelConfig
from hearth.core.errors import CapacityError, ConfigError
from hearth.core.program import Quantize
from hearth.core.units import MIB
from hearth.engine import planning
from hearth.engine.executor import BackendChoice
from hearth.engine.planning import PlannedModel, plan_model
from hearth.host.fit import needed_bytes
from hearth.host.memory import HostMemory, MemoryFact
from hearth.host.scratch import scratch_bytes
from hearth.kernels.packing import buffer_row_bytes

CPU = BackendChoice("cpu", "test")
AUTO = EngineConfig(ModelConfig(str(TEXT_MODEL_DIR), quantize="auto"))


def plan(
    monkeypatch: pytest.MonkeyPatch, available_bytes: int, config: EngineConfig = AUTO
) -> PlannedModel:
    memory = HostMemory((MemoryFact(available_bytes, "a test"),))
    monkeypatch.setattr(planning, "read_memory", lambda: memory)
    return plan_model(CPU, config, 2)


def needed(monkeypatch: pytest.MonkeyPatch, scheme: str) -> int:
    """What a scheme needs, from the plan that takes it when there is plenty."""
    config = replace(AUTO, model=replace(AUTO.model, quantize=scheme))
    loaded = plan(monkeypatch, 1 << 40, config).loaded
    request = planning.fit_request(CPU, config, loaded, 2)
    return needed_bytes(request, loaded.max_position_embeddings)


def test_the_most_exact_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [needed(monkeypatch, scheme) for scheme in ("none", "int8", "int4")]
    assert needs == sorted(needs, reverse=True)
    for index, scheme in enumerate(("none", "int8", "int4")):
        planned = plan(monkeypatch, needs[index])
        choice = planned.choices[0]
        assert (choice.name, choice.value) == ("quantize", scheme)
        assert "the most exact that fits: bfloat16 " in choice.reason
        assert "4,096 tokens; " in choice.reason
        assert ("int4 would answer up to" in choice.reason) == (scheme != "int4")
        assert planned.fitted.limits.max_model_len == 4096
        has_codes = any(isinstance(op, Quantize) for op in planned.loaded.program.ops)
        assert has_codes == (scheme != "none")


def test_where_nothing_fits_the_error_has_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CapacityError, match=r"bfloat16 \d+ MiB, int8 \d+ MiB, int4 \d+ MiB; 50.0 MiB"
    ):
        plan(monkeypatch, 50 * MIB)


def test_the_context_and_cache_that_are_asked_for_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short context leaves room for exact weights, a large cache takes it."""
    available = needed(monkeypatch, "int4")
    short = replace(AUTO, model=replace(AUTO.model, max_model_len=64))
    assert plan(monkeypatch, available, short).choices[0].value == "none"
    large = replace(AUTO, cache=CacheConfig(memory_bytes=available))
    with pytest.raises(CapacityError, match="in no precision"):
        plan(monkeypatch, available, large)


def test_where_nothing_fits_what_the_error_offers_does_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter context, and keys and values in fewer bits, each with the context it allows."""
    few = needed(monkeypatch, "int4") - 10 * MIB
    with pytest.raises(CapacityError, match="in no precision") as caught:
        plan(monkeypatch, few)
    hint = caught.value.hint or ""
    (shorter,) = re.findall(r"set --max-model-len ≤ ([\d,]+)", hint)
    longest = int(shorter.replace(",", ""))
    assert 16 <= longest < 4096
    for tokens, fits in ((longest, True), (longest + 16, False)):
        config = replace(AUTO, model=replace(AUTO.model, max_model_len=tokens))
        if fits:
            assert plan(monkeypatch, few, config).choices[0].value == "int4"
        else:
            with pytest.raises(CapacityError):
                plan(monkeypatch, few, config)
    offered = dict(re.findall(r"--kv-cache-dtype (\w+) allows ([\d,]+) tokens", hint))
    assert offered.keys() == {"int8", "int4"}
    for dtype, allowed in offered.items():
        tokens = int(allowed.replace(",", ""))
        assert longest < tokens <= 4096
        model = replace(AUTO.model, max_model_len=tokens)
        planned = plan(monkeypatch, few, replace(AUTO, model=model, cache=CacheConfig(dtype=dtype)))
        assert planned.fitted.limits.max_model_len == tokens
    assert "docs/kv-cache.md" in hint
    # Where the weights alone are too many, nothing of that helps, and nothing is said.
    with pytest.raises(CapacityError) as caught:
        plan(monkeypatch, 50 * MIB)
    assert "--max-model-len" not in (caught.value.hint or "")
    assert "--kv-cache-dtype" not in (caught.value.hint or "")


def test_a_cache_that_is_too_large_is_told_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    available = needed(monkeypatch, "int4")
    with pytest.raises(CapacityError) as caught:
        plan(monkeypatch, available, replace(AUTO, cache=CacheConfig(memory_bytes=available)))
    (most,) = re.findall(r"set --kv-cache-memory-bytes ≤ (\d+)", caught.value.hint or "")
    fitting = replace(AUTO, cache=CacheConfig(memory_bytes=int(most)))
    assert plan(monkeypatch, available, fitting).choices[0].value == "int4"


def test_without_the_kernels_auto_means_none() -> None:
    planned = plan_model(BackendChoice("reference", "no C++ kernels"), AUTO, 2)
    assert planned.choices[0].value == "none"
    assert "reference runs the model" in planned.choices[0].reason


def test_exact_activations_take_no_room_for_rounded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(AUTO.model, quantize="int4")
    rounded = plan(monkeypatch, 1 << 40, replace(AUTO, model=model))
    exact_model = replace(model, codes=CodesConfig("float32", 64))
    exact = plan(monkeypatch, 1 << 40, replace(AUTO, model=exact_model))
    assert not any(isinstance(op, Quantize) for op in exact.loaded.program.ops)
    coded = [
        sum(buffer.group_size > 0 for buffer in each.loaded.program.buffers)
        for each in (exact, rounded)
    ]
    assert coded[0] == 0 < coded[1]
    said = [(choice.name, choice.value) for choice in exact.choices]
    assert said == [
        ("quantize", "int4"),
        ("activations", "float32"),
        ("group size", "64"),
        ("kv_cache_dtype", "bfloat16, 1.50 KiB a token"),
    ]


def test_residuals_have_room_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(AUTO.model, quantize="int8")
    plain = plan(monkeypatch, 1 << 40, replace(AUTO, model=model))
    kept_model = replace(model, codes=CodesConfig("int8-residual"))
    kept = plan(monkeypatch, 1 << 40, replace(AUTO, model=kept_model))
    assert [(c.name, c.value) for c in kept.choices][1] == ("activations", "int8-residual")
    sizes = [scratch_bytes(each.loaded.program, 64, 8) for each in (plain, kept)]
    coded = [
        sum(buffer_row_bytes(b) for b in each.loaded.program.buffers if b.group_size)
        for each in (plain, kept)
    ]
    assert sizes[1] > sizes[0]
    assert coded[1] == 2 * coded[0]


@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_residuals_without_codes_are_refused(
    monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    model = replace(AUTO.model, quantize="none", codes=CodesConfig("int8-residual"))
    with pytest.raises(ConfigError, match="no matrix is codes"):
        plan_model(BackendChoice(executor, ""), replace(AUTO, model=model), 2)


def test_the_plan_has_room_for_the_images_of_a_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the most and largest ones, which the front end keeps while they wait."""
    write_directory(tmp_path)
    pixel_bytes: list[int] = []
    for limit in (10, 10_000):
        images = ImagesConfig(limit=limit)
        planned = plan(
            monkeypatch, 1 << 40, EngineConfig(ModelConfig(str(tmp_path)), images=images)
        )
        info = planned.images(EngineConfig(ModelConfig(str(tmp_path)), images=images))
        assert info is not None
        assert info.pixel_bytes == max(256 * MIB, limit * 60 * 28 * 28 * 3)
        (item,) = [item for item in planned.fitted.plan.items if item.name == "pixels"]
        pixel_bytes.append(item.num_bytes - info.pixel_bytes)
    assert pixel_bytes[0] == pixel_bytes[1] > 0


@pytest.mark.parametrize("quantize", ["none", "auto"])
@pytest.mark.parametrize(
    ("cache", "available_bytes", "said"),
    [
        (CacheConfig(), 300 * MIB, "free memory"),
        (CacheConfig(memory_bytes=1 << 50), 1 << 40, "--kv-cache-memory-bytes"),
    ],
)
def test_a_refusal_names_the_images_where_their_pixels_are_large(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cache: CacheConfig,
    available_bytes: int,
    said: str,
    quantize: str,
) -> None:
    write_directory(tmp_path)
    for limit, is_named in ((100_000, True), (10, False)):
        config = EngineConfig(
            ModelConfig(str(tmp_path), quantize=quantize),
            cache,
            images=ImagesConfig(limit=limit, cache_bytes=8 << 30),
        )
        with pytest.raises(CapacityError) as caught:
            plan(monkeypatch, available_bytes, config)
        hint = caught.value.hint or ""
        assert said in hint
        assert ("lower --limit-images or --max-pixels (pixels take 13." in hint) == is_named


def test_a_context_that_does_not_fit_beside_many_images_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_directory(tmp_path)
    images = ImagesConfig(limit=10_000)
    config = EngineConfig(ModelConfig(str(tmp_path), max_model_len=100), images=images)
    fixed = plan(monkeypatch, 1 << 40, config).fitted.plan
    kv = next(item.num_bytes for item in fixed.items if item.name == "KV cache")
    with pytest.raises(CapacityError, match="the KV cache of one sequence of 100") as caught:
        plan(monkeypatch, fixed.total_bytes - kv + 1000, config)
    assert "lower --limit-images or --max-pixels" in (caught.value.hint or "")
