"""GGUF headers: what the package `gguf` writes is read; what lies is refused before it costs."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.gguf_writer import finish

from hearth.core.errors import HearthError, ModelError, WeightsError
from hearth.models.gguf.config import config_of
from hearth.models.gguf.file import read_gguf


def write(path: Path, arch: str = "llama") -> Path:
    """A small file with every kind of value."""
    writer = gguf.GGUFWriter(path, arch)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"n.{name}", 7)
    writer.add_float32("n.float32", 0.5)
    writer.add_float64("n.float64", 0.25)
    writer.add_bool("n.bool", True)
    writer.add_string("n.text", "größer")
    writer.add_array("n.numbers", [1, 2, 3])
    writer.add_array("n.texts", ["a", "", "ü"])
    writer.add_tensor("token_embd.weight", np.arange(128, dtype=np.float32).reshape(4, 32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("y.weight", np.ones(32, np.float32))
    quantized = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("x.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    finish(writer)
    return path


def test_values_and_tensors_are_those_that_the_library_wrote(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "a.gguf"))
    metadata = file.metadata
    assert all(metadata[f"n.{kind}{n}"] == 7 for kind in ("int", "uint") for n in (8, 16, 32, 64))
    assert metadata["n.bool"] is True
    assert (metadata["n.float32"], metadata["n.float64"]) == (0.5, 0.25)
    assert (metadata["n.text"], metadata["n.texts"]) == ("größer", ["a", "", "ü"])
    assert metadata["n.numbers"] == [1, 2, 3]
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert len(reader.tensors) == len(file.tensors) == 4
    for tensor in reader.tensors:
        entry = file.tensors[tensor.name]
        assert entry.begin == tensor.data_offset
        assert entry.end - entry.begin == tensor.n_bytes
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert entry.dtype == tensor.tensor_type.name


def at(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def after(data: bytes, text: bytes, value: bytes, skip: int = 0) -> bytes:
    """The bytes behind a text, replaced."""
    return at(data, data.index(text) + len(text) + skip, value)


HUGE = struct.pack("<Q", 1 << 60)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: b"GGUX" + d[4:], "begins with b'GGUX'"),
        (lambda d: at(d, 4, struct.pack("<I", 1)), "GGUF version is 1"),
        (lambda d: at(d, 4, struct.pack(">I", 3)), "big-endian"),
        (lambda d: at(d, 8, HUGE), "claims 1,152,921,504,606,846,976 tensors"),
        (lambda d: at(d, 8, b"\xff" * 8), "tensors"),
        (lambda d: at(d, 16, HUGE), "metadata pairs"),
        (lambda d: at(d, 24, HUGE), "ends within a metadata key"),
        (lambda d: after(d, b"n.text", HUGE, 4), "ends within n.text"),
        (lambda d: after(d, b"n.numbers", HUGE, 8), "elements of n.numbers"),
        (lambda d: after(d, b"n.texts", HUGE, 8), "elements of n.texts"),
        (lambda d: after(d, b"n.texts", HUGE, 16), "ends within n.texts"),
        (lambda d: after(d, b"n.bool", struct.pack("<I", 99)), "unknown type 99"),
        (lambda d: d.replace(b"n.uint8", b"n.int16"), "n.int16 twice"),
        (lambda d: d.replace(b"y.weight", b"x.weight"), "the tensor x.weight twice"),
        (lambda d: after(d, b"x.weight", struct.pack("<I", 9)), "9 dimensions"),
        (lambda d: after(d, b"x.weight", struct.pack("<Q", 65), 4), "multiples of 32"),
        (lambda d: after(d, b"x.weight", HUGE, 12), "sizes"),
        (lambda d: after(d, b"x.weight", struct.pack("<I", 10), 20), "type Q2_K; permitted: BF16"),
        (lambda d: after(d, b"x.weight", struct.pack("<I", 77), 20), "type 77; permitted"),
        (lambda d: after(d, b"x.weight", HUGE, 24), "is truncated"),
        (lambda d: after(d, b"x.weight", struct.pack("<Q", 1), 24), "askew"),
        (lambda d: after(d, b"x.weight", struct.pack("<Q", 32), 24), "over another"),
        (lambda d: d[:-40], "is truncated"),
        (lambda d: d[:200], "left"),
        (lambda d: d[:10], "ends within its counts"),
        (lambda d: d[:3], "has 3 bytes"),
        (lambda d: b"", "has 0 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_lies_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(change(path.read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError) as caught:
        read_gguf(path)
    assert says in caught.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_bytes_change_the_answer_is_a_header_or_an_error(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        file = read_gguf(path)
        assert all(e.end <= len(data) for e in file.tensors.values())
        config_of(file)
    except HearthError:
        pass


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.replace(b"llama", b"mamba"), "general.architecture is 'mamba'"),
        (lambda d: d, "llama.attention.head_count is missing"),
        (lambda d: d.replace(b"n.uint16", b"split.co"), "head_count is missing"),
    ],
)
def test_what_the_configuration_lacks_is_named(
    tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError) as caught:
        config_of(read_gguf(path))
    assert says in caught.value.message
