"""A pull that converts: by the real quantizer, from a hub that is cut off, lies, or says no."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.hub_server import COMMIT, REPO, FakeHub, Fault
from tests.support.shards import INDEX, shard_names, sharded_model
from tests.unit.hub.hubs import QUICK, Recorder, hugging

from hearth.core.errors import (
    CapacityError,
    ChecksumError,
    ConfigError,
    HearthError,
    UnreachableError,
    WeightsError,
)
from hearth.hub.converting import ConvertingAttempt, converted_name
from hearth.hub.names import parse_name
from hearth.hub.pull import MARGIN_BYTES, Order, Pulled, here, pull
from hearth.hub.store import Store
from hearth.models.safetensors_file import read_checkpoint
from hearth.quant.checkpoint import Converter, quantize_directory, scheme_of

SHARDS = shard_names(3)
SCHEME = scheme_of("int4", 64)


@pytest.fixture(scope="module")
def model() -> dict[str, bytes]:
    return sharded_model(len(SHARDS))


def do_convert(
    root: Path, hub: FakeHub, converter: Converter | None = None, **order: Any
) -> Pulled:
    make = partial(ConvertingAttempt, converter or Converter(SCHEME))
    wanted = Order(parse_name(REPO), retry=QUICK, **order)
    return pull(Store(root), wanted, [hugging(hub)], Recorder(), make)


def directory_of(root: Path) -> Path:
    return root / "test-org--toy-model" / f"{COMMIT}.{SCHEME}"


def tensors_of(directory: Path) -> dict[str, bytes]:
    checkpoint = read_checkpoint(directory)
    return {
        name: entry.path.read_bytes()[entry.begin : entry.end]
        for name, entry in checkpoint.tensors.items()
    }


def bytes_on_disk(root: Path) -> int:
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file() and p.name != "source")


def test_the_result_is_what_a_conversion_of_the_whole_model_gives(
    tmp_path: Path, model: dict[str, bytes]
) -> None:
    for name, data in model.items():
        (tmp_path / "whole").mkdir(exist_ok=True)
        (tmp_path / "whole" / name).write_bytes(data)
    quantize_directory(tmp_path / "whole", tmp_path / "quantized", SCHEME, lambda *_: None)
    with FakeHub(model) as hub:
        pulled = do_convert(tmp_path / "store", hub)
    assert pulled.path == directory_of(tmp_path / "store")
    assert tensors_of(pulled.path) == tensors_of(tmp_path / "quantized")
    config = json.loads((pulled.path / "config.json").read_text())
    assert config == json.loads((tmp_path / "quantized" / "config.json").read_text())
    left = {p.name for p in (tmp_path / "store").rglob("*") if p.is_file()} - {
        *model, ".hearth.json", f"main+{SCHEME}", "test-org--toy-model"
    }  # fmt: skip
    assert left <= {f"main%2B{SCHEME}"}  # the note of what the revision means


def test_the_disk_never_holds_more_than_the_result_and_one_file(
    tmp_path: Path, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    class Watched(Converter):
        def convert(self, source: Path, *rest: Any) -> None:
            held.append(bytes_on_disk(tmp_path))
            super().convert(source, *rest)
            held.append(bytes_on_disk(tmp_path))

    with FakeHub(model) as hub:
        pulled = do_convert(tmp_path, hub, Watched(SCHEME))
    result = bytes_on_disk(pulled.path)
    largest = max(len(model[name]) for name in SHARDS)
    assert len(held) == 2 * len(SHARDS)
    assert max(held) <= result + largest + 20_000
    assert max(held) < sum(len(model[name]) for name in SHARDS)  # or nothing would be shown


def test_it_is_found_by_name_and_nothing_is_done_twice(
    tmp_path: Path, model: dict[str, bytes]
) -> None:
    with FakeHub(model) as hub:
        first = do_convert(tmp_path, hub)
        second = do_convert(tmp_path, hub)
        assert all(len(hub.ranges(name)) == 1 for name in SHARDS)
    assert second.manifest == first.manifest
    assert second.num_fetched_bytes == 0
    store, name = Store(tmp_path), parse_name(REPO)
    for text in (REPO, f"{REPO}@main+{SCHEME}", f"{REPO}@{COMMIT[:12]}+{SCHEME}"):
        found = here(store, parse_name(text))
        assert found is not None
        assert found.path == first.path
    assert here(store, converted_name(name, str(SCHEME))) is not None
    (listed,) = store.models()
    assert listed.short == f"{COMMIT[:12]}+{SCHEME}"
    store.verify(listed, lambda _: None)


def test_the_whole_model_and_the_converted_one_stand_beside_each_other(
    tmp_path: Path, model: dict[str, bytes]
) -> None:
    with FakeHub(model) as hub:
        whole = pull(
            Store(tmp_path), Order(parse_name(REPO), retry=QUICK), [hugging(hub)], Recorder()
        )
        converted = do_convert(tmp_path, hub)
        assert all(len(hub.ranges(name)) == 1 for name in SHARDS)  # taken from the whole model
    assert converted.num_fetched_bytes < 1_000_000
    assert (whole.path / SHARDS[0]).read_bytes() == model[SHARDS[0]]
    found = here(Store(tmp_path), parse_name(REPO))
    assert found is not None
    assert found.path == whole.path


@pytest.mark.parametrize("seed", range(6))
def test_cut_off_anywhere_it_goes_on_and_finished_files_stay(
    tmp_path: Path, model: dict[str, bytes], seed: int
) -> None:
    chance = random.Random(seed)
    shard = chance.randrange(len(SHARDS))
    cut = chance.randrange(len(model[SHARDS[shard]]))
    with FakeHub(model) as hub:
        hub.fail(SHARDS[shard], Fault(cut=cut), *[Fault(status=503)] * 10)
        with pytest.raises(HearthError):
            do_convert(tmp_path, hub)
        assert not (directory_of(tmp_path) / "config.json").exists()
        assert here(Store(tmp_path), parse_name(REPO)) is None
        hub.heal()
        before = {name: len(hub.ranges(name)) for name in SHARDS}
        pulled = do_convert(tmp_path, hub)
        for name in SHARDS[:shard]:
            assert len(hub.ranges(name)) == before[name]
        if cut:
            assert hub.ranges(SHARDS[shard])[-1] == f"bytes={cut}-"
    assert len(tensors_of(pulled.path)) > 147


def test_a_wrong_checksum_is_never_converted(tmp_path: Path, model: dict[str, bytes]) -> None:
    with FakeHub(model) as hub:
        hub.fail(SHARDS[1], *[Fault(corrupt=True)] * 4)
        with pytest.raises(ChecksumError):
            do_convert(tmp_path, hub)
        assert (directory_of(tmp_path) / SHARDS[0]).exists()
        assert not (directory_of(tmp_path) / SHARDS[1]).exists()
        hub.heal()
        assert do_convert(tmp_path, hub).path.is_dir()


def test_a_half_written_file_of_another_scheme_is_not_taken(
    tmp_path: Path, model: dict[str, bytes]
) -> None:
    """Whatever lies under a file's name must say that it was made of this file, by this scheme."""
    target = directory_of(tmp_path) / SHARDS[0]
    target.parent.mkdir(parents=True)
    target.write_bytes(model[SHARDS[0]])
    with FakeHub(model) as hub:
        pulled = do_convert(tmp_path, hub)
        assert len(hub.ranges(SHARDS[0])) == 1
    assert any(name.endswith("weight_packed") for name in tensors_of(pulled.path))


def test_the_disk_is_looked_at_before_the_first_weight(
    tmp_path: Path, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = MARGIN_BYTES + 10_000_000  # of 5.2 MB, and 5.2 of the largest file

    with FakeHub(model) as hub:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: Usage)
            with pytest.raises(CapacityError) as caught:
                do_convert(tmp_path, hub)
        assert "of the result and" in caught.value.message
        assert not any(hub.ranges(name) for name in SHARDS)
        Usage.free += 4_000_000
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
        assert do_convert(tmp_path, hub).path.is_dir()


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bad = "model.language_model.layers.0.self_attn.q_proj.weight"
    poisoned = []

    def poison(name: str, data: bytes) -> bytes:
        if not name.endswith("layers.0.self_attn.q_proj.weight"):
            return data
        poisoned.append(name)
        return data[:100] + b"\x80\x7f" + data[102:]  # infinity

    with FakeHub(sharded_model(3, poison)) as hub, pytest.raises(WeightsError) as caught:
        do_convert(tmp_path, hub)
    assert poisoned, bad
    assert poisoned[0] in caught.value.message
    assert "not finite" in caught.value.message


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    for name, data in sharded_model(1).items():
        (tmp_path / "whole").mkdir(exist_ok=True)
        (tmp_path / "whole" / name).write_bytes(data)
    quantize_directory(tmp_path / "whole", tmp_path / "q", SCHEME, lambda *_: None)
    files = {p.name: p.read_bytes() for p in (tmp_path / "q").iterdir()}
    with FakeHub(files) as hub, pytest.raises(ConfigError) as caught:
        do_convert(tmp_path / "store", hub)
    assert "quantized already" in caught.value.message


def test_nobody_answers(tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        pass
    with pytest.raises(UnreachableError):
        do_convert(tmp_path, hub)


assert INDEX  # the index of the source is not the result's
