"""Files of a model directory that do not belong together, each named with its counterpart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hearth.cli.settings import BUILT_IN_DIR
from hearth.engine.compatibility import check_model

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILT_IN_DIR, tmp_path / "model"))


def edit(path: Path, change: Edit) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def said(model: Path) -> list[str]:
    return [f"{finding.severity}: {finding.text}" for finding in check_model(model)]


def test_the_built_in_model_fits_together(model: Path) -> None:
    assert said(model) == []


def test_a_tokenizer_larger_than_the_vocabulary_names_both(model: Path) -> None:
    def grow(values: dict[str, Any]) -> None:
        token = {**values["added_tokens"][-1], "id": 1_000_000, "content": "<|beyond|>"}
        values["added_tokens"].append(token)
        values["model"]["vocab"]["<|beyond|>"] = 1_000_000

    edit(model / "tokenizer.json", grow)
    first = said(model)[0]
    assert first.startswith("error: ")
    assert "'<|beyond|>' has id 1000000" in first
    assert "vocabulary has 3264" in first


@pytest.mark.parametrize(
    ("file", "key", "value", "severity"),
    [
        ("config.json", "eos_token_id", 999_999, "error"),
        ("config.json", "image_token_id", 999_999, "error"),
        ("config.json", "pad_token_id", 999_999, "warning"),
        ("generation_config.json", "pad_token_id", 999_999, "warning"),
        ("generation_config.json", "eos_token_id", [1, 999_999], "error"),
    ],
)
def test_a_special_id_beyond_the_vocabulary_is_named(
    model: Path, file: str, key: str, value: object, severity: str
) -> None:
    edit(model / file, lambda values: values.update({key: value}))
    found = [text for text in said(model) if key in text and "999,999" in text]
    assert found, said(model)
    assert found[0].startswith(severity)


def test_a_special_id_that_no_token_has_is_named(model: Path) -> None:
    def forget(values: dict[str, Any]) -> None:
        last = max(values["added_tokens"], key=lambda token: token["id"])
        values["added_tokens"].remove(last)
        values["model"]["vocab"].pop(last["content"], None)
        edit(model / "config.json", lambda config: config.update(pad_token_id=last["id"]))

    edit(model / "tokenizer.json", forget)
    assert any("pad_token_id" in text and "knows no such id" in text for text in said(model))


def test_no_pad_token_is_no_fault(model: Path) -> None:
    edit(model / "config.json", lambda values: values.update(pad_token_id=-1))
    assert said(model) == []


def test_a_named_token_that_is_in_no_vocabulary_is_a_warning(model: Path) -> None:
    edit(model / "tokenizer_config.json", lambda values: values.update(cls_token="<|nowhere|>"))
    (text,) = said(model)
    assert text.startswith("warning: tokenizer_config.json: cls_token is '<|nowhere|>'")


def test_truncated_weights_are_an_error(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(5_000_000)
    (text,) = said(model)
    assert text.startswith("error: model.safetensors: is truncated")


def test_a_missing_shard_is_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert any("model-2.safetensors" in text and "missing" in text for text in said(model))


def test_weights_of_other_shapes_than_the_config_s_are_an_error(model: Path) -> None:
    edit(model / "config.json", lambda values: _text(values).update(intermediate_size=64))
    assert any(text.startswith("error: ") and "[128, 192]" in text for text in said(model))


def _text(values: dict[str, Any]) -> dict[str, Any]:
    return values.get("text_config", values)  # type: ignore[no-any-return]


def test_an_unknown_architecture_is_a_note_and_the_rest_is_checked(model: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        values["architectures"] = ["SomethingNewForCausalLM"]
        values["model_type"] = "something_new"

    edit(model / "config.json", rename)
    (model / "tokenizer.json").write_text("{}")
    texts = said(model)
    assert any(text.startswith("note: ") and "SomethingNew" in text for text in texts)
    assert any(text.startswith("error: ") and "tokenizer.json" in text for text in texts)


def test_no_chat_template_is_a_note(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", lambda values: values.pop("chat_template", None))
    assert said(model) == ["note: there is no chat template: completions only, no chats"]


def test_a_processor_of_other_patches_is_an_error(model: Path) -> None:
    edit(model / "preprocessor_config.json", lambda values: values.update(patch_size=13))
    assert any(text.startswith("error: ") and "13" in text for text in said(model))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{% if", b"3"])
def test_whatever_a_file_holds_there_is_no_trace(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    for text in said(model):
        assert text.startswith(("error: ", "warning: ", "note: "))
