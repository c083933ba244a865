"""Serving on a GPU is chosen where there is one, refused with a reason, planned, and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.toy_engine import Driver

from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.config import (
    CodesConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from hearth.core.errors import ConfigError, KernelError
from hearth.core.request import FinishReason, Request, SamplingParams
from hearth.engine import device
from hearth.engine.executor import choose_backend
from hearth.engine.settings import check_settings
from hearth.engine.startup import StartedEngine, start
from hearth.kernels.triton import device as triton_device

MODEL = Path(BUILT_IN_DIR)
CONFIG = EngineConfig(
    ModelConfig(str(BUILT_IN_DIR)),
    device=DeviceConfig(executor=device.ON_CPU),
    scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64),
)


def choose(executor: str = "auto", *, may_use_gpu: bool = True, **more: str) -> tuple[str, str]:
    config = DeviceConfig(executor=executor, **more)  # type: ignore[arg-type]  # names of fields
    backend = choose_backend(config, MODEL, may_use_gpu=may_use_gpu)
    return backend.name, backend.reason


@pytest.fixture
def has_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_device, "has_driver", lambda: True)
    monkeypatch.setattr(triton_device, "cuda_refusal", lambda: "")


def test_without_a_driver_the_cpu_serves_and_torch_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> str:
        raise AssertionError("torch would have been imported")

    monkeypatch.setattr(triton_device, "has_driver", lambda: False)
    monkeypatch.setattr(triton_device, "cuda_refusal", fail)
    assert choose()[0] == "cpu"


@pytest.mark.usefixtures("has_gpu")
def test_a_gpu_is_taken_where_it_is_asked_for_and_told_of_where_not() -> None:
    assert choose("cuda") == ("triton", "--executor")
    name, reason = choose()
    assert name == "cpu"
    assert "--executor cuda serves on it" in reason
    assert choose("cpu")[0] == "cpu"
    assert choose("reference")[0] == "reference"
    assert "cuda" not in choose(may_use_gpu=False)[1]  # what plans for the CPU


@pytest.mark.usefixtures("has_gpu")
def test_kernels_that_have_not_run_on_a_card_are_warned_of() -> None:
    backend = choose_backend(DeviceConfig(executor="cuda"), MODEL)
    assert "have not run on one yet" in backend.warning


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_gpu_that_is_asked_for_and_missing_is_refused_with_what_to_install() -> None:
    with pytest.raises(KernelError, match="--executor is cuda, and ") as raised:
        choose("cuda")
    assert "hearth[cuda]" in str(raised.value.hint)


def test_drivers_are_found_by_their_files(tmp_path: Path) -> None:
    assert not triton_device.has_driver(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert triton_device.has_driver(tmp_path)


def test_rows_of_int8_are_refused_since_they_are_the_cpus() -> None:
    codes = CodesConfig(activations="int8")
    config = replace(CONFIG, model=replace(CONFIG.model, quantize="int8", codes=codes))
    with pytest.raises(ConfigError, match="--activations is int8") as raised:
        start(config, lambda *_: None)
    assert raised.value.hint == "leave it out"


def test_the_settings_offer_cuda_and_nothing_for_tests() -> None:
    check_settings(replace(CONFIG, device=DeviceConfig(executor="cuda")))
    with pytest.raises(ConfigError, match="auto, cpu, cuda, reference, automodel"):
        check_settings(replace(CONFIG, device=DeviceConfig(executor="gpu")))


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_a_model_is_planned_loaded_and_answers(
    quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole start: plan, weights, canary, engine; in plain torch, which is quick."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # set by tests of kernels
    model = replace(CONFIG.model, quantize=quantize)
    config = replace(CONFIG, model=model, canary=quantize == "none")
    started = start(config, lambda *_: None)
    try:
        assert started.ready.executor.name == "triton"
        names = [line.partition(":")[0] for line in started.ready.memory]
        assert names == ["weights", "scratch", "graphs", "KV cache"]
        choices = {choice.name: choice for choice in started.ready.resolved.choices}
        assert choices["executor"].value == "triton"
        assert choices["canary"].value == ("passed" if config.canary else "off")
        assert ("codes" in choices) == (quantize != "none")
        assert any("encoded on the CPU" in w for w in started.ready.resolved.warnings)
        assert answer(started)
    finally:
        started.engine.close()


def answer(started: StartedEngine) -> list[int]:
    driver = Driver(started.engine)
    driver.submit(Request("a", (5, 6, 7), 8, SamplingParams(seed=3)))
    driver.run(max_steps=100)
    outcome = driver.outcomes["a"]
    assert outcome.reason in {FinishReason.LENGTH, FinishReason.STOP}
    return outcome.tokens
