"""FP8 through the real commands: written, served as it is, rounded to at the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.server import SMALL, Server, environment
from tools.demo_model import TEXT_MODEL_DIR

QUESTIONS = ("What is hearth?", "Who are you?")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained text model as `hearth quantize --scheme fp8` writes it."""
    target = tmp_path_factory.mktemp("fp8") / "q"
    command = ["quantize", str(TEXT_MODEL_DIR), "-o", str(target), "--scheme", "fp8"]
    done = subprocess.run(
        [sys.executable, "-m", "hearth.cli", *command],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n"
    return target


def asked(log: Path, *arguments: str) -> tuple[list[str], str]:
    """Answers, and what the server told at its start."""
    log.mkdir()
    with Server(log, *arguments, *SMALL, XDG_CACHE_HOME=str(log.parent / "cache")) as server:
        answers = [server.ask(question) for question in QUESTIONS]
        return answers, " ".join((server.stdout + server.stderr).split())


def test_it_answers_as_the_original(tmp_path: Path, checkpoint: Path) -> None:
    """What the model was trained on survives rounding, of the file and at the start."""
    original, _ = asked(tmp_path / "original", str(TEXT_MODEL_DIR))
    stored, told = asked(tmp_path / "stored", str(checkpoint))
    rounded, told_of_rounding = asked(
        tmp_path / "rounded", str(TEXT_MODEL_DIR), "--quantize", "fp8"
    )
    assert original == stored == rounded
    assert all(original)
    assert "quantize: as stored (config.json: quantization_config; fp8 80 %, bfloat16 20 %)" in told
    assert "for which there is no kernel" not in told
    assert "quantize: fp8 (--quantize; of the matrices: fp8 100 %" in told_of_rounding
    assert "activations: float32 (FP8 is multiplied as floating point" in told_of_rounding


def test_int8_rows_beside_fp8_are_refused_by_name() -> None:
    arguments = ["serve", str(TEXT_MODEL_DIR), "--quantize", "fp8", "--activations", "int8"]
    done = subprocess.run(
        [sys.executable, "-m", "hearth.cli", *arguments],
        capture_output=True, text=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--activations is int8, and --quantize is fp8" in done.stderr
    assert "Traceback" not in done.stderr
