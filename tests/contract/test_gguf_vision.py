"""GLM-4.1V from a GGUF file and its mmproj file: the model of the safetensors, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.support.gguf_vision import MEAN, STD, save_vision
from tests.support.vision_models import build_model

from hearth.core.config import EngineConfig, ModelConfig
from hearth.core.errors import HearthError, ModelError
from hearth.core.spec import QuantSpec, WeightSlot
from hearth.engine.planning import image_info
from hearth.kernels.reference.weights import ReferenceWeights
from hearth.models.gguf.names import encoder_name
from hearth.models.gguf.view import view_of
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.weights import load_weights


def loaded(path: Path) -> tuple[LoadedSpec, ReferenceWeights]:
    spec = load_model_spec(path, "float32")
    weights = ReferenceWeights(spec.program)
    report = load_weights(spec, weights)
    assert report.warnings == ()
    return spec, weights


def plain(slot: WeightSlot) -> WeightSlot:
    """Without how it is stored."""
    return replace(slot, stored=None, parts=(), quant=QuantSpec(slot.quant.dtype))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Any, dict[str, torch.Tensor]]:
    """The two files, their model, and what its tensors stand for."""
    directory = tmp_path / "gguf"
    directory.mkdir()
    model = build_model(1)
    return directory / "m.gguf", model, save_vision(model, directory)


def view(path: Path) -> Path:
    return view_of(path, {"XDG_CACHE_HOME": str(path.parent / "cache")})


def test_it_is_the_model_of_the_safetensors(
    tmp_path: Path, files: tuple[Path, Any, dict[str, torch.Tensor]]
) -> None:
    path, model, values = files
    model.load_state_dict(values)
    model.save_pretrained(tmp_path / "plain")
    expected, expected_weights = loaded(tmp_path / "plain")
    found, weights = loaded(view(path))
    assert found.spec.layers == expected.spec.layers
    assert found.spec.rope == expected.spec.rope
    assert found.spec.vision == expected.spec.vision
    assert tuple(map(plain, found.spec.slots)) == tuple(map(plain, expected.spec.slots))
    for slot in expected.spec.slots:
        assert torch.equal(weights[slot.name], expected_weights[slot.name]), slot.name
    assert any(slot.quant.bits == 8 for slot in found.spec.slots)


def test_names_are_those_of_the_library() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 3)
    for key in build_model(1).state_dict():
        if "visual" in key:
            name = names.get_name(key.removeprefix("model."), try_suffixes=(".weight", ".bias"))
            assert name is not None
            assert encoder_name(name) == key


def test_the_view_says_how_images_are_prepared(
    files: tuple[Path, Any, dict[str, torch.Tensor]],
) -> None:
    path = view(files[0])
    processor = json.loads((path / "preprocessor_config.json").read_text())
    assert (processor["image_mean"], processor["image_std"]) == (MEAN, STD)
    info = image_info(load_model_spec(path), EngineConfig(ModelConfig(str(path))))
    assert info is not None
    assert (info.token_id, info.processor.patch_size) == (7, 14)
    assert tuple(info.processor.mean) == tuple(MEAN)
    config = json.loads((path / "config.json").read_text())
    assert (config["image_token_id"], config["image_start_token_id"]) == (7, 8)
    assert [p.name for p in read_checkpoint(path).files] == ["model.gguf", "mmproj.gguf"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.with_name("mmproj-m.gguf").unlink(), "its encoder is missing"),
        (lambda p: p.with_name("mmproj-2.gguf").write_bytes(b""), "its encoder is missing"),
        (lambda p: swap(p.with_name("mmproj-m.gguf"), b"glm4v", b"glm5v"), "is 'glm5v'"),
        (lambda p: swap(p, b"<|image|>", b"<|imago|>"), "no token <|image|>"),
        (lambda p: p.with_name("mmproj-m.gguf").write_bytes(b"GGUF"), "ends within"),
    ],
)
def test_what_is_missing_is_named(
    files: tuple[Path, Any, dict[str, torch.Tensor]], change: Any, says: str
) -> None:
    change(files[0])
    with pytest.raises(HearthError) as caught:
        view(files[0])
    assert isinstance(caught.value, ModelError)
    assert says in caught.value.message


def swap(path: Path, before: bytes, after: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(before, after))
