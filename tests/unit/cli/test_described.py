"""The description of a model on a hub: one hub's, in bounded time, and nothing is left of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.support.hub_server import REPO, FakeHub, Fault
from tests.unit.models.checkpoints import LLAMA, llama_tensors, write_config, write_sharded

from hearth.cli import described as module
from hearth.cli.described import described
from hearth.core.errors import UnreachableError, WeightsError

SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    directory = tmp_path / "model"
    directory.mkdir()
    write_config(directory, LLAMA)
    write_sharded(directory, llama_tensors())
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_MODELS_DIR", str(tmp_path / "store"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_headers_are_read_when_they_are_asked_for_and_nothing_stays(
    files: dict[str, bytes],
) -> None:
    with FakeHub(files) as hub, described(REPO, hub.url) as found:
        assert not hub.ranges(SHARD)
        checkpoint = found.read_weights()
        assert checkpoint is not None
        assert checkpoint.tensors.keys() == llama_tensors().keys()
        directory = found.directory
        assert {path.name for path in directory.iterdir()} == {
            "config.json",
            "model.safetensors.index.json",
        }
    assert not directory.exists()


def test_a_hub_that_dribbles_is_left_when_the_time_is_over(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT_S", 1.0)
    long = (1 << 20).to_bytes(8, "little") + b"{" + b" " * (2 << 20)
    with FakeHub({**files, SHARD: long}) as hub:
        hub.fail(SHARD, *[Fault(slow_s=0.1)] * 9)  # 6 s for the header
        begun = time.monotonic()
        with described(REPO, hub.url) as found:
            with pytest.raises(UnreachableError, match="is too slow to say"):
                found.read_weights()
            assert time.monotonic() - begun < 4.0


def test_two_hubs_descriptions_are_not_mixed(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {**files, "generation_config.json": b"{}", "preprocessor_config.json": b"{}"}
    with FakeHub(first) as hub, FakeHub(files) as other:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("hearth.hub.sources.MODELSCOPE_URL", other.url)
        hub.fail("preprocessor_config.json", *[Fault(503, {"Retry-After": "0"})] * 9)
        with described(REPO, "auto") as found:
            assert [path.name for path in found.directory.iterdir()] == ["config.json"]


def test_of_a_local_model_what_is_not_whole_is_told_and_no_weights_are_none(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    model = tmp_path / "model"
    (model / SHARD).unlink()
    with described(str(model), "auto") as found, pytest.raises(WeightsError, match="are missing"):
        found.read_weights()
    for path in model.glob("*.safetensors"):
        path.unlink()
    with described(str(model), "auto") as found:
        assert found.read_weights() is None
    with described(str(model / "config.json"), "auto") as found:
        assert found.read_weights() is None
    assert files
