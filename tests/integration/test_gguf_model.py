"""A GGUF file as MODEL: planned and served by the real commands, answering as the original does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from tests.integration.server import SMALL, Server, environment, run_to_end
from tests.support.gguf_models import save_gguf
from tools.demo_model import TEXT_MODEL_DIR
from transformers import AutoModelForCausalLM

QUESTIONS = ("What is hearth?", "Who are you?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained text model in 8 bits, with its tokenizer beside it: it has a cut of its own."""
    directory = tmp_path_factory.mktemp("gguf")
    for pattern in ("tokenizer*.json", "*.jinja", "generation_config.json"):
        for path in TEXT_MODEL_DIR.glob(pattern):
            shutil.copy(path, directory)
    original = AutoModelForCausalLM.from_pretrained(TEXT_MODEL_DIR)
    save_gguf(original, directory / "small-q8_0.gguf", lambda _: Type.Q8_0)
    return directory / "small-q8_0.gguf"


def test_it_answers_as_the_original(tmp_path: Path, model: Path) -> None:
    answers = []
    for name, source in (("original", TEXT_MODEL_DIR), ("gguf", model)):
        log = tmp_path / name
        log.mkdir()
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        with Server(log, str(source), *SMALL, **cache) as server:
            answers.append([server.ask(question) for question in QUESTIONS])
            if source == model:
                assert "small-q8_0" in server.stdout
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_what_was_converted_is_told_at_the_start(tmp_path: Path, model: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(TEXT_MODEL_DIR)
    path = model.with_name("small-q5_1.gguf")
    save_gguf(original, path, lambda _: Type.Q5_1)
    with Server(tmp_path, str(path), *SMALL, XDG_CACHE_HOME=str(tmp_path / "cache")) as server:
        assert server.ask(QUESTIONS[0])
        told = " ".join((server.stdout + server.stderr).split())
    path.unlink()
    assert "matrices are stored as GGUF Q5_1, for which there is no kernel: kept as int8" in told
    assert "relative squared error" in told


def test_it_is_planned_from_its_header(tmp_path: Path, model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hearth.cli", "plan", str(model), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
    )
    assert result.returncode == 0, result.stderr
    stored = json.loads(result.stdout)["stored"]
    assert stored["dtypes"].keys() == {"Q8_0", "F32"}


def test_one_that_was_cut_short_is_refused_at_once(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model.read_bytes()[:-100])
    result = run_to_end(str(path), XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 3
    assert "is truncated" in result.stderr
    assert "Traceback" not in result.stderr
