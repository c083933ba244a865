"""The tensors of a model on a hub are known from a few kilobytes, whatever the hub does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.hub_server import REPO, FakeHub, Fault
from tests.unit.hub.hubs import QUICK, hugging, scope
from tests.unit.models.checkpoints import (
    LLAMA,
    Tensors,
    llama_tensors,
    write_config,
    write_raw,
    write_safetensors,
    write_sharded,
)

from hearth.core.errors import (
    ChecksumError,
    GatedModelError,
    RemoteError,
    UnreachableError,
    WeightsError,
)
from hearth.hub import fronts as fronts_module
from hearth.hub.describe import RemoteModel, ask
from hearth.hub.fronts import FIRST_BYTES
from hearth.hub.names import parse_name
from hearth.hub.sources import Source
from hearth.hub.transport import Retry, Transport
from hearth.models.remote_checkpoint import read_remote_checkpoint
from hearth.models.safetensors_file import Checkpoint, read_checkpoint

SINGLE = "model.safetensors"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
MIB = 1 << 20


def on_disk(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def sharded(directory: Path, tensors: Tensors | None = None) -> dict[str, bytes]:
    directory.mkdir()
    write_config(directory, LLAMA)
    write_sharded(directory, llama_tensors() if tensors is None else tensors)
    return on_disk(directory)


def single(directory: Path, tensors: Tensors) -> dict[str, bytes]:
    directory.mkdir()
    write_config(directory, LLAMA)
    write_safetensors(directory / SINGLE, tensors)
    return on_disk(directory)


def read(
    directory: Path,
    *sources: Source,
    retry: Retry = QUICK,
    stopped: threading.Event | None = None,
    notes: list[str] | None = None,
) -> Checkpoint:
    directory.mkdir(exist_ok=True)

    def look(remote: RemoteModel) -> Checkpoint:
        return read_remote_checkpoint(remote, directory)

    stop = threading.Event() if stopped is None else stopped
    transport = Transport(retry, (notes if notes is not None else []).append)
    try:
        return ask(parse_name(REPO), sources, transport, stop, look)
    finally:
        transport.close()


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        name: (e.path.name, e.dtype, e.shape, e.begin, e.end)
        for name, e in checkpoint.tensors.items()
    }


def big(num_bytes: int) -> Tensors:
    return {"a": np.zeros(num_bytes // 4, np.float32)}


@pytest.mark.parametrize("source", [hugging, scope])
def test_a_hub_tells_what_the_files_themselves_would(
    tmp_path: Path, source: Callable[[FakeHub], Source]
) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        found = read(tmp_path / "remote", source(hub))
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))
    assert [path.name for path in (tmp_path / "remote").iterdir()] == [
        "model.safetensors.index.json"
    ]


def test_of_a_large_file_one_small_range_is_asked_for(tmp_path: Path) -> None:
    with FakeHub(single(tmp_path / "local", big(4 * MIB))) as hub:
        found = read(tmp_path / "remote", hugging(hub))
        assert hub.ranges(SINGLE) == [f"bytes=0-{FIRST_BYTES - 1}"]
    assert found.tensors["a"].shape == (MIB,)


def test_of_a_small_file_no_more_is_asked_for_than_it_has(tmp_path: Path) -> None:
    with FakeHub(single(tmp_path / "local", big(400))) as hub:
        read(tmp_path / "remote", hugging(hub))
        assert hub.ranges(SINGLE) == [f"bytes=0-{len(hub.files[SINGLE]) - 1}"]


def test_a_header_longer_than_the_first_range_is_read_to_its_end(tmp_path: Path) -> None:
    many = {f"layer.{i}.{'x' * 60}": np.zeros(2, np.float32) for i in range(1500)}
    with FakeHub(single(tmp_path / "local", many)) as hub:
        end = 8 + int.from_bytes(hub.files[SINGLE][:8], "little")
        assert end > 2 * FIRST_BYTES
        found = read(tmp_path / "remote", hugging(hub))
        assert hub.ranges(SINGLE) == [
            f"bytes=0-{FIRST_BYTES - 1}",
            f"bytes={FIRST_BYTES}-{end - 1}",
        ]
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))


def test_a_server_that_ignores_ranges_is_read_as_far_as_needed(tmp_path: Path) -> None:
    with FakeHub(single(tmp_path / "local", big(16 * MIB))) as hub:
        # The rest would take 10 s, and is never waited for.
        hub.fail(SINGLE, Fault(ignore_range=True, slow_s=0.01))
        begun = time.monotonic()
        found = read(tmp_path / "remote", hugging(hub))
        assert time.monotonic() - begun < 5.0
        assert len(hub.ranges(SINGLE)) == 1
    assert found.tensors["a"].shape == (4 * MIB,)


def test_a_server_that_begins_to_ignore_ranges_is_read_from_the_beginning(tmp_path: Path) -> None:
    many = {f"layer.{i}.{'x' * 60}": np.zeros(2, np.float32) for i in range(1500)}
    with FakeHub(single(tmp_path / "local", many)) as hub:
        hub.fail(SINGLE, Fault(), Fault(ignore_range=True))
        found = read(tmp_path / "remote", hugging(hub))
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))


def test_shards_are_asked_several_at_a_time(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        for path in SHARDS:
            hub.fail(path, Fault(slow_s=0.3))
        read(tmp_path / "remote", hugging(hub))
        assert hub.most_at_once == 3


def test_what_was_cut_is_asked_for_from_there(tmp_path: Path) -> None:
    notes: list[str] = []
    with FakeHub(single(tmp_path / "local", big(MIB))) as hub:
        hub.fail(SINGLE, Fault(503), Fault(cut=1000))
        found = read(tmp_path / "remote", hugging(hub), notes=notes)
    # Some of the 1,000 bytes were enough: nothing else had to be asked for.
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))
    assert "503" in notes[0]


def test_a_range_that_comes_in_parts_is_put_together(tmp_path: Path) -> None:
    many = {f"layer.{i}": np.zeros(2, np.float32) for i in range(300)}
    with FakeHub(single(tmp_path / "local", many)) as hub:
        size = len(hub.files[SINGLE])
        hub.fail(SINGLE, Fault(cut=5), Fault(cut=700), Fault(cut=0))
        found = read(tmp_path / "remote", hugging(hub))
        assert [r.partition("-")[0] for r in hub.ranges(SINGLE)] == [
            "bytes=0",
            "bytes=5",
            "bytes=705",
            "bytes=705",
        ]
        assert size > 705
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))


@pytest.mark.parametrize("said", ["bytes 5-65535/4194304", "", "bytes 0-65535/99"])
def test_another_range_than_the_one_asked_for_is_not_taken(tmp_path: Path, said: str) -> None:
    with FakeHub(single(tmp_path / "local", big(MIB))) as hub:
        hub.fail(SINGLE, *[Fault(206, {"Content-Range": said}, b"x" * 100)] * 9)
        with pytest.raises(RemoteError):
            read(tmp_path / "remote", hugging(hub))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (99_000_000_000, "header length is 99,000,000,000 bytes; permitted: up to 1,000"),
        (101_000_000, "header length is 101,000,000 bytes; permitted: up to 1,000"),
        (0, "the header is not valid JSON"),
    ],
)
def test_a_header_that_lies_about_its_length_is_refused_at_once(
    tmp_path: Path, length: int, message: str
) -> None:
    files = {"config.json": b"{}", SINGLE: length.to_bytes(8, "little") + b"{" * 1000}
    with FakeHub(files) as hub:
        with pytest.raises(WeightsError, match=message):
            read(tmp_path / "remote", hugging(hub))
        assert len(hub.ranges(SINGLE)) == 1


def test_a_header_that_lies_about_its_tensors_is_refused_as_a_local_one(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    write_raw(tmp_path / SINGLE, header, b"\0" * 12)
    said = "is truncated: tensor a ends at byte"
    with FakeHub(on_disk(tmp_path)) as hub, pytest.raises(WeightsError, match=said):
        read(tmp_path / "remote", hugging(hub))


def test_headers_of_all_shards_together_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts_module, "MOST_BYTES", 1000)
    said = "headers of weights with more than 1000 B"
    with FakeHub(sharded(tmp_path / "local")) as hub, pytest.raises(RemoteError, match=said):
        read(tmp_path / "remote", hugging(hub))


def test_a_shard_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        del hub.files[SHARDS[1]]
        with pytest.raises(WeightsError, match=f"of which 1 are missing: {SHARDS[1]}") as caught:
            read(tmp_path / "remote", hugging(hub))
        assert "name another revision" in str(caught.value)
        assert not hub.ranges(SHARDS[0])


def test_shards_without_an_index_are_no_weights(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        del hub.files["model.safetensors.index.json"]
        with pytest.raises(WeightsError, match=f"{REPO} on .* it holds {SHARDS[0]}"):
            read(tmp_path / "remote", hugging(hub))


def test_an_index_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    files = sharded(tmp_path / "local")
    index = {"weight_map": {"a": "../model.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    with FakeHub(files) as hub, pytest.raises(WeightsError, match="permitted: a file name"):
        read(tmp_path / "remote", hugging(hub))


def test_a_wrong_index_is_not_taken(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        hub.fail("model.safetensors.index.json", Fault(corrupt=True))
        with pytest.raises(ChecksumError, match="git-sha1"):
            read(tmp_path / "remote", hugging(hub))


def test_a_gated_model_is_refused_with_its_page_and_read_with_the_token(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        hub.gated, hub.token = True, "hf_secret"
        with pytest.raises(GatedModelError, match="ask for access at"):
            read(tmp_path / "remote", hugging(hub))
        found = read(tmp_path / "remote", hugging(hub, "hf_secret"))
        # The host of large files is another one: it never sees the token.
        assert hub.requests("", "content")
        assert all("authorization" not in s.headers for s in hub.requests("", "content"))
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))


def test_one_shard_that_is_refused_ends_it_all(tmp_path: Path) -> None:
    with FakeHub(sharded(tmp_path / "local")) as hub:
        hub.fail(SHARDS[0], *[Fault(503)] * 9)
        with pytest.raises(UnreachableError, match="no hub answers"):
            read(tmp_path / "remote", hugging(hub))


def test_a_server_that_is_too_slow_is_left_when_the_time_is_over(tmp_path: Path) -> None:
    with FakeHub(single(tmp_path / "local", big(8 * MIB))) as hub:
        hub.fail(SINGLE, Fault(hold=3))  # three bytes, then nothing
        stopped = threading.Event()
        timer = threading.Timer(0.2, stopped.set)
        timer.start()
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match="is too slow to say"):
            read(
                tmp_path / "remote",
                hugging(hub),
                retry=Retry(attempts=9, timeout_s=0.3, backoff_s=0.001),
                stopped=stopped,
            )
        assert time.monotonic() - begun < 3.0
        timer.join()


def test_the_next_hub_is_asked_where_the_first_does_not_answer(tmp_path: Path) -> None:
    files = sharded(tmp_path / "local")
    with FakeHub(files) as hub, FakeHub(files) as other:
        hub.fail("list", *[Fault(503)] * 9)
        found = read(tmp_path / "remote", hugging(hub), scope(other))
    assert facts(found) == facts(read_checkpoint(tmp_path / "local"))
