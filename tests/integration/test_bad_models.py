"""Model directories and settings that cannot be served: one clear message, no trace, an exit code.

Each is the text model with one thing broken.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.integration.server import SMALL, Server, free_port, run_to_end
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core import errors

WEIGHTS = "model.safetensors"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for file in TEXT_MODEL_DIR.iterdir():
        if file.is_file():
            shutil.copy(file, path / file.name)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    value.update(changes)
    path.write_text(json.dumps(value), encoding="utf-8")


def assert_refused(kind: type[errors.HearthError], *arguments: str) -> str:
    """Returns the message, without the log lines before it."""
    result = run_to_end("--port", str(free_port()), *arguments)
    assert result.returncode == kind.exit_code, result.stderr
    assert f"[{kind.code}]" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    _, _, message = result.stderr.partition("error: ")
    return message


def test_missing_weights(model_dir: Path) -> None:
    (model_dir / WEIGHTS).unlink()
    assert "safetensors" in assert_refused(errors.WeightsError, str(model_dir))


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 100_000])
def test_truncated_weights(model_dir: Path, num_bytes: int) -> None:
    path = model_dir / WEIGHTS
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert WEIGHTS in assert_refused(errors.WeightsError, str(model_dir))


def test_corrupt_weights(model_dir: Path) -> None:
    path = model_dir / WEIGHTS
    path.write_bytes(b"\xff" * 1000)
    assert WEIGHTS in assert_refused(errors.WeightsError, str(model_dir))


def test_weights_of_another_shape(model_dir: Path) -> None:
    size = json.loads((model_dir / "config.json").read_text())["intermediate_size"]
    edit_json(model_dir / "config.json", intermediate_size=size * 2)
    message = assert_refused(errors.WeightsError, str(model_dir))
    assert f"[{2 * size}, " in message  # gate and up together
    assert f"[{4 * size}, " in message


def test_an_unknown_architecture(model_dir: Path) -> None:
    edit_json(model_dir / "config.json", architectures=["MysteryForCausalLM"], model_type="mystery")
    message = assert_refused(errors.UnknownArchitectureError, str(model_dir))
    assert "MysteryForCausalLM" in message
    assert "Glm4ForCausalLM" in message


def test_a_broken_config(model_dir: Path) -> None:
    (model_dir / "config.json").write_text("{")
    assert "config.json" in assert_refused(errors.ModelError, str(model_dir))


def test_no_tokenizer(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    assert "no tokenizer.json" in assert_refused(errors.TokenizerError, str(model_dir))


def test_a_corrupt_tokenizer(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "tokenizer.json" in assert_refused(errors.TokenizerError, str(model_dir))


def test_a_tokenizer_of_another_model(model_dir: Path) -> None:
    path = model_dir / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    token = dict(value["added_tokens"][-1], id=10**6, content="<far>")
    value["added_tokens"].append(token)
    path.write_text(json.dumps(value), encoding="utf-8")
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    message = assert_refused(errors.TokenizerError, str(model_dir))
    assert "<far>" in message or str(vocab_size) in message


def test_a_chat_template_with_wrong_syntax(model_dir: Path) -> None:
    (model_dir / "chat_template.jinja").write_text("{% if %}")
    assert "line 1" in assert_refused(errors.TokenizerError, str(model_dir))


def test_without_a_chat_template_it_starts_and_the_request_is_told(
    model_dir: Path, tmp_path: Path
) -> None:
    (model_dir / "chat_template.jinja").unlink()
    with Server(tmp_path, str(model_dir), *SMALL) as server:
        assert "warning: the model has no chat template" in server.stdout
        response = server.chat("Hi")
        assert response.status_code == 400
        assert "no chat template" in response.json()["error"]["message"]
        assert server.health()["status"] == "UP"


def test_a_port_in_use_fails_before_anything_is_loaded(tmp_path: Path) -> None:
    with Server(tmp_path, *SMALL) as server:
        result = run_to_end("--port", str(server.port))
        assert result.returncode == errors.PortInUseError.exit_code
        assert f"already listens on 127.0.0.1:{server.port}" in result.stderr
        assert "--port" in result.stderr.partition("what to do")[2]
        assert server.ask("What is hearth?")


def test_too_little_memory_for_one_block() -> None:
    message = assert_refused(errors.CapacityError, "--kv-cache-memory-bytes", "1000")
    assert "--kv-cache-memory-bytes" in message or "KV cache" in message


def test_too_little_memory_for_the_context() -> None:
    message = assert_refused(
        errors.CapacityError, "--kv-cache-memory-bytes", "1M", "--max-model-len", "4096"
    )
    assert "--max-model-len" in message


def test_a_context_beyond_the_models() -> None:
    result = run_to_end("--port", str(free_port()), "--max-model-len", "1000000")
    assert result.returncode in (errors.ConfigError.exit_code, errors.CapacityError.exit_code)
    assert "max-model-len" in result.stderr
    assert "Traceback" not in result.stderr
