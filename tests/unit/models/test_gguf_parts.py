"""GGUF models in parts: all of them or an error; and fronts of files that are elsewhere."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.support.gguf_writer import finish

from hearth.core.errors import ModelNotFoundError, WeightsError
from hearth.models.gguf.file import LEAST_GROWN_BYTES, front_bytes, read_gguf
from hearth.models.gguf.parts import parts_of, plain_stem, read_parts
from hearth.models.gguf.view import find_gguf


def part(path: Path, number: int, count: int | None, names: list[str], total: int) -> Path:
    """One of `count` parts; None: it says nothing of parts."""
    writer = gguf.GGUFWriter(path, "llama")
    if count is not None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", total)
    for name in names:
        writer.add_tensor(name, np.ones((2, 32), np.float32))
    finish(writer)
    return path


def two(directory: Path, second: list[str] | None = None, number: int = 1) -> list[Path]:
    """Two parts; what is said of the second may be wrong."""
    first = part(directory / "m-00001-of-00002.gguf", 0, 2, ["a", "b"], 3)
    return [first, part(directory / "m-00002-of-00002.gguf", number, 2, second or ["c"], 3)]


def test_each_part_gives_its_tensors(tmp_path: Path) -> None:
    paths = two(tmp_path)
    file = read_parts(paths)
    assert {name: entry.path for name, entry in file.tensors.items()} == {
        "a": paths[0],
        "b": paths[0],
        "c": paths[1],
    }
    assert file.path == paths[0]
    for path in paths:
        assert parts_of(path) == tuple(paths)
        assert plain_stem(path) == "m"


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    paths = two(tmp_path)
    for missing, left in (paths, paths[::-1]):
        content = missing.read_bytes()
        missing.unlink()
        for path in (left, tmp_path):
            with pytest.raises(WeightsError, match=missing.name):
                find_gguf(path)
        missing.write_bytes(content)
    alone = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(WeightsError, match="one of 2 parts"):
        read_parts(parts_of(alone))


@pytest.mark.parametrize(
    ("second", "number", "says"),
    [
        (["c"], 0, "says that it is part 0"),
        (["b"], 1, "has b, as a part before it has"),
        (["c", "d"], 1, "have 4 tensors together, not 3"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, second: list[str], number: int, says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        read_parts(two(tmp_path, second, number))


def test_files_that_only_their_names_make_parts_are_refused(tmp_path: Path) -> None:
    paths = [part(tmp_path / f"m-0000{n}-of-00002.gguf", n, None, [f"t{n}"], 2) for n in (1, 2)]
    with pytest.raises(WeightsError, match="part None"):
        read_parts(paths)
    for name in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf"):
        with pytest.raises(WeightsError, match="of 2"):
            parts_of(tmp_path / name)


def test_two_models_in_one_directory_are_two_and_parts_of_one_are_one(tmp_path: Path) -> None:
    paths = two(tmp_path)
    assert find_gguf(tmp_path) == paths[0]
    part(tmp_path / "other.gguf", 0, None, ["a"], 1)
    with pytest.raises(ModelNotFoundError, match="holds 2 GGUF files"):
        find_gguf(tmp_path)


def with_vocabulary(path: Path, num_tokens: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token number {n}" for n in range(num_tokens)])
    writer.add_token_scores([0.0] * num_tokens)
    writer.add_tensor("a", np.ones((64, 32), np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(32, np.float32))
    finish(writer)
    return path


@pytest.mark.parametrize("num_tokens", [10, 5_000, 70_000])
def test_of_any_front_is_told_how_much_is_needed_until_the_header_is_there(
    tmp_path: Path, num_tokens: int
) -> None:
    path = with_vocabulary(tmp_path / "a.gguf", num_tokens)
    data = path.read_bytes()
    begin = min(entry.begin for entry in read_gguf(path).tensors.values())
    end = front_bytes(path, data, len(data))
    assert begin - 32 < end <= begin
    have = 4
    asked = []
    while have < (needed := front_bytes(path, data[:have], len(data))):
        asked.append(needed)
        have = needed
    assert front_bytes(path, data[:have], len(data)) == end
    assert have <= min(len(data), max(2 * end, LEAST_GROWN_BYTES))
    assert len(asked) <= 3
    for cut in {*range(4, min(end, 400)), end - 1, end // 2}:
        assert front_bytes(path, data[:cut], len(data)) > cut
    # With the factors of frequencies up to their end, wherever they lie.
    (factors,) = (e for n, e in read_gguf(path).tensors.items() if n == "rope_freqs.weight")
    assert front_bytes(path, data, len(data), ("rope_freqs.weight",)) == factors.end


def test_a_front_of_a_file_that_lies_is_damaged_and_not_short(tmp_path: Path) -> None:
    data = with_vocabulary(tmp_path / "a.gguf", 100).read_bytes()
    with pytest.raises(WeightsError, match="begins with"):
        front_bytes(Path("a.gguf"), b"<htm" + data, len(data))
    many = data[:16] + (1 << 40).to_bytes(8, "little") + data[24:]
    with pytest.raises(WeightsError, match="metadata pairs"):
        front_bytes(Path("a.gguf"), many[:64], len(data))
    with pytest.raises(WeightsError, match="truncated"):
        front_bytes(Path("a.gguf"), data[:-1], len(data) - 1)
