"""A GGUF model on a hub is described as its files are, from their headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.support.gguf_models import Vocabulary, save_gguf
from tests.support.gguf_vision import save_vision
from tests.support.gguf_writer import finish
from tests.support.hf_models import ModelCase, build_model
from tests.support.hub_server import REPO, FakeHub, Fault
from tests.support.vision_models import build_model as build_vision_model

from hearth.cli import described as module
from hearth.cli.described import described
from hearth.core.errors import HearthError, ModelError, UnknownArchitectureError
from hearth.models.gguf import remote as remote_module
from hearth.models.gguf.view import view_of
from hearth.models.safetensors_file import Checkpoint, read_checkpoint

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "num_hidden_layers": 2,
}
PADDING = 4 << 20  # behind the tensors: a file's size, and nothing that is to be read


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_MODELS_DIR", str(tmp_path / "store"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def vocabulary(num_tokens: int, length: int = 20) -> Vocabulary:
    """A SentencePiece one, as large as is wanted."""
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    kinds = [2, 3, 3] + [6] * 256
    while len(tokens) < num_tokens:
        tokens.append(f"t{len(tokens):0{length}}")
        kinds.append(1)
    return Vocabulary("llama", "default", tokens, kinds, [-float(i) for i in range(len(tokens))])


def write(
    path: Path, num_tokens: int = 300, factors: Any = None, part_tensors: int = 0, length: int = 20
) -> None:
    model = build_model(ModelCase("m", "llama", 3, {**SIZES, "vocab_size": num_tokens}))
    words = vocabulary(num_tokens, length)
    save_gguf(model, path, lambda _: Type.Q8_0, words, factors, part_tensors)
    for part in path.parent.glob("*.gguf"):
        with part.open("ab") as file:
            file.truncate(part.stat().st_size + PADDING)


def on_disk(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def facts(checkpoint: Checkpoint | None) -> dict[str, tuple[Any, ...]]:
    assert checkpoint is not None
    return {
        name: (entry.dtype, entry.shape, entry.begin, entry.end)
        for name, entry in checkpoint.tensors.items()
    }


def assert_described_as(directory: Path, first: str, hub: FakeHub, name: str = REPO) -> None:
    """The hub's model has the configuration and the tensors of the files here."""
    view = view_of(directory / first, {"XDG_CACHE_HOME": str(directory.parent / "cache")})
    with described(name, hub.url) as found:
        place = found.directory
        for path in ("config.json", "preprocessor_config.json"):
            if (view / path).exists():
                expected = json.loads((view / path).read_text())
                assert json.loads((place / path).read_text()) == expected
        assert facts(found.read_weights()) == facts(read_checkpoint(view))
        assert found.remote is not None
        weights = sum(len(data) for path, data in hub.files.items() if path.endswith(".gguf"))
        assert found.remote.weight_bytes == weights
        # Holes take no space: what lies here is what was fetched.
        taken = sum(p.lstat().st_blocks * 512 for p in place.parents[2].rglob("*.gguf"))
        assert taken < weights
    assert not place.exists()


def last_byte(hub: FakeHub, path: str) -> int:
    return max(int(text.partition("-")[2]) for text in hub.ranges(path))


@pytest.mark.parametrize("num_tokens", [300, 40_000])
def test_as_much_is_read_as_the_vocabulary_takes(tmp_path: Path, num_tokens: int) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf", num_tokens)
    with FakeHub(on_disk(directory)) as hub:
        assert_described_as(directory, "m.gguf", hub)
        num_read = last_byte(hub, "m.gguf") + 1
        assert num_read == (1 << 16 if num_tokens == 300 else 1 << 21)
        assert len(hub.ranges("m.gguf")) <= 3  # in growing pieces, each from where one ended


def test_a_model_that_sees_is_described_with_its_encoder(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    save_vision(build_vision_model(1), directory)
    files = on_disk(directory)
    with FakeHub(files) as hub:
        assert_described_as(directory, "m.gguf", hub)
        del hub.files["mmproj-m.gguf"]
        with pytest.raises(ModelError, match="its encoder is missing"), described(REPO, hub.url):
            pass


def test_parts_are_described_as_one_model(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf", part_tensors=9)
    with FakeHub(on_disk(directory)) as hub:
        assert len(hub.files) > 1
        assert_described_as(directory, "m-00001-of-00003.gguf", hub)


@pytest.mark.parametrize("is_near", [True, False])
def test_factors_of_frequencies_are_fetched_where_they_lie_near_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_near: bool
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    factors = np.linspace(1, 8, 16, dtype=np.float32)
    write(directory / "m.gguf", factors=factors)
    if not is_near:
        monkeypatch.setattr(remote_module, "MAX_REMOTE_HEADER_BYTES", 1 << 15)
    with FakeHub(on_disk(directory)) as hub, described(REPO, hub.url) as found:
        config = json.loads((found.directory / "config.json").read_text())
    expected = factors.tolist() if is_near else [1.0] * 16
    assert config["rope_parameters"]["short_factor"] == pytest.approx(expected)


def test_a_hub_that_ignores_ranges_is_read_as_far_as_needed(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf", 40_000)
    with FakeHub(on_disk(directory)) as hub:
        hub.fail("m.gguf", *[Fault(ignore_range=True)] * 4)
        assert_described_as(directory, "m.gguf", hub)
        assert len(hub.ranges("m.gguf")) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf", 40_000)
    with FakeHub(on_disk(directory)) as hub:
        hub.fail("m.gguf", Fault(), Fault(cut=100_000))
        assert_described_as(directory, "m.gguf", hub)
        assert any(
            text.startswith(f"bytes={(1 << 16) + 100_000}-") for text in hub.ranges("m.gguf")
        )


def test_a_header_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf", 40_000)
    monkeypatch.setattr(remote_module, "MAX_REMOTE_HEADER_BYTES", 1 << 20)
    with FakeHub(on_disk(directory)) as hub:
        with pytest.raises(HearthError, match="its header has more than"), described(REPO, hub.url):
            pass
        assert last_byte(hub, "m.gguf") < 2 << 20


def test_what_cannot_be_served_is_told_before_it_is_pulled(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    finish(writer)
    with (
        FakeHub({"m.gguf": path.read_bytes()}) as hub,
        pytest.raises(UnknownArchitectureError, match="'mamba'"),
        described(REPO, hub.url),
    ):
        pass
    with (
        FakeHub({"m.gguf": b"version https://git-lfs.github.com/spec/v1" * 9}) as hub,
        pytest.raises(HearthError, match="begins with"),
        described(REPO, hub.url),
    ):
        pass


def test_a_tokenizer_beside_it_is_not_fetched_and_the_header_s_is_not_looked_at(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    model = build_model(ModelCase("m", "llama", 3, SIZES))
    unknown = Vocabulary("gpt2", "a-cut-of-its-own", ["a"] * 300, [1] * 300, merges=["a a"])
    save_gguf(model, directory / "m.gguf", lambda _: Type.Q8_0, unknown)
    with FakeHub(on_disk(directory)) as hub:
        with pytest.raises(HearthError, match="a-cut-of-its-own"), described(REPO, hub.url):
            pass
        hub.files["tokenizer.json"] = b"{}" * 999
        with described(REPO, hub.url) as found:
            assert facts(found.read_weights())
        assert not hub.ranges("tokenizer.json")


def test_of_a_hub_that_breaks_off_nothing_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    write(directory / "m.gguf")
    other = tmp_path / "o"
    shutil.copytree(directory, other)
    (other / "m.gguf").rename(other / "other.gguf")
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    with FakeHub(on_disk(directory)) as hub, FakeHub(on_disk(other)) as second:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("hearth.hub.sources.MODELSCOPE_URL", second.url)
        hub.fail("m.gguf", *[Fault(503, {"Retry-After": "0"})] * 9)
        with described(REPO, "auto") as found:
            names = {p.name for p in found.directory.parents[2].rglob("*") if p.is_file()}
    assert "other.gguf" in names
    assert "m.gguf" not in names
