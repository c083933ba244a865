"""A damaged or hostile weight file is refused before anything of it is used."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.models.checkpoints import (
    llama_tensors,
    write_index,
    write_raw,
    write_safetensors,
    write_sharded,
)

from hearth.core.errors import WeightsError
from hearth.models.safetensors_file import read_checkpoint, read_header


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> Any:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(path: Path, header: object, data: bytes = b"\0" * 16) -> str:
    write_raw(path / "model.safetensors", header, data)
    with pytest.raises(WeightsError) as caught:
        read_header(path / "model.safetensors")
    return caught.value.message


def test_a_good_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, {"a": entry(0, 8), "b": entry(8, 16, [2, 1])}, b"\0" * 16)
    entries = read_header(path)
    assert {n: (e.shape, e.end - e.begin) for n, e in entries.items()} == {
        "a": ((2,), 8),
        "b": ((2, 1), 8),
    }
    assert entries["b"].end == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "the header is not valid JSON: Expecting property name"),
        (b"\xff", "the header is not valid JSON: 'utf-8' codec"),
        (b"[]", "the header holds [], not an object"),
        (b'{"a": 1, "a": 2}', "the header is not valid JSON: 'a' appears twice"),
        ({"a": 3}, "tensor a: the header entry is 3, not an object"),
        ({"a": entry(0, 16, dtype="F31")}, 'tensor a: dtype is "F31"; permitted: BOOL, U8'),
        ({"a": entry(0, 16, [-4])}, "tensor a: shape is [-4]; permitted: a list of sizes"),
        ({"a": entry(0, 16, [4.0])}, "tensor a: shape is [4.0]; permitted: a list of sizes"),
        ({"a": entry(16, 0, [4])}, "tensor a: data_offsets is [16, 0]; permitted: [begin, end]"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "tensor a: data_offsets is null"),
        (
            {"a": entry(0, 16, [5])},
            "tensor a: F32 [5] needs 20 bytes, data_offsets give 16",
        ),
        (
            {"a": entry(0, 16, [1 << 40, 1 << 40])},
            "tensor a: F32 [1099511627776, 1099511627776] needs",
        ),
        ({"a": entry(0, 32)}, "is truncated: tensor a ends at byte"),
        ({"a": entry(0, 8), "b": entry(4, 16)}, "it overlaps the tensor before it"),
        ({"a": entry(0, 4), "b": entry(8, 16)}, "it leaves a hole"),
        ({"a": entry(0, 8)}, "the tensors end at byte"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: object, message: str) -> None:
    actual = refused(tmp_path, header)
    assert actual.startswith("model.safetensors: ")
    assert message in actual


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"has {len(content)} bytes"):
        read_header(path)


def test_a_git_lfs_pointer_is_recognised_as_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(WeightsError, match="a Git LFS pointer"):
        read_header(path)


@given(st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    write_safetensors(path, llama_tensors(num_layers=1))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WeightsError):
        read_header(path)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    with contextlib.suppress(WeightsError):
        assert read_header(path) == {}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, llama_tensors())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.message == (
        "model.safetensors.index.json names 3 files, of which 1 are missing: "
        "model-00002-of-00003.safetensors"
    )


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, llama_tensors())
    write_index(tmp_path, {**weight_map, "more": "model-00001-of-00003.safetensors"})
    with pytest.raises(WeightsError, match="tensor more is not in model-00001-of-00003"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file_name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 3, "a\\b"]
)
def test_a_shard_outside_the_directory_is_refused(tmp_path: Path, file_name: object) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_safetensors(tmp_path / "secret.safetensors", llama_tensors())
    write_index(model, {"a": file_name})
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(model)
    assert caught.value.message == (
        f"model.safetensors.index.json: tensor a is in {json.dumps(file_name)}; permitted: a "
        "file name within the model directory"
    )


@pytest.mark.parametrize("weight_map", [None, {}, [1], "a"])
def test_an_index_without_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(WeightsError, match="weight_map is"):
        read_checkpoint(tmp_path)


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(WeightsError, match="is not valid JSON"):
        read_checkpoint(tmp_path)


def test_a_directory_without_safetensors_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.message == (
        f"{tmp_path} holds neither model.safetensors nor model.safetensors.index.json; it holds "
        "pytorch_model.bin"
    )
    assert "--load-format dummy" in str(caught.value)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(WeightsError, match="cannot be read"):
            read_checkpoint(path)


def test_a_shard_that_is_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    write_sharded(tmp_path, llama_tensors())
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(tmp_path / "gone")
    with pytest.raises(WeightsError, match="of which 1 are missing: model-00002"):
        read_checkpoint(tmp_path)
