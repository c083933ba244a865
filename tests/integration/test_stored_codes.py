"""A checkpoint that holds codes, planned and served: it says so, and answers as the whole model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.server import SMALL, Server

from hearth.cli.settings import BUILT_IN_DIR
from hearth.quant.checkpoint import quantize_directory, scheme_of


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantized") / "model"
    quantize_directory(BUILT_IN_DIR, target, scheme_of("int4", 128), lambda *_: None)
    return target


def test_it_is_served_as_the_whole_model_would_be(quantized: Path, tmp_path: Path) -> None:
    answers = []
    for name, model in (("whole", BUILT_IN_DIR), ("stored", quantized)):
        (tmp_path / name).mkdir()
        with Server(tmp_path / name, str(model), *SMALL, "--quantize", "int4") as server:
            answers.append(server.ask("What is hearth?", max_tokens=24))
    assert answers[0] == answers[1]


def test_the_banner_says_that_codes_are_taken_as_they_are(quantized: Path, tmp_path: Path) -> None:
    with Server(tmp_path, str(quantized), *SMALL) as server:
        assert "quantize: as stored (config.json: quantization_config; int4" in server.stdout
        assert server.ask("What is hearth?", max_tokens=8)


def test_the_plan_lists_what_differs(quantized: Path) -> None:
    command = [sys.executable, "-m", "hearth.cli", "plan", str(quantized), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    report = json.loads(done.stdout)
    assert [outlook["stored_as"] for outlook in report["outlooks"]] == ["as stored", "int8"]
    assert report["stored"]["dtypes"].keys() == {"I32", "BF16", "I64"}
