"""`hearth plan` as a user runs it: text, JSON, a config alone, what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.autoglm import CONFIG, write_autoglm

from hearth.cli.settings import BUILT_IN_DIR

Plan: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Plan:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hearth.cli", "plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return plan


def test_a_configuration_alone_is_planned_without_weights(run: Plan, tmp_path: Path) -> None:
    path = tmp_path / "some-config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    done = run(str(path), "--memory", "16GiB")
    assert (done.returncode, done.stderr) == (0, "")
    assert "10,292,777,472 parameters" in done.stdout
    assert "run with --measure" in done.stdout
    assert "int8, the most exact that fits" in done.stdout


def test_what_fits_in_no_precision_ends_with_1(run: Plan, tmp_path: Path) -> None:
    done = run(str(write_autoglm(tmp_path)), "--memory", "3GiB", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert [outlook["scheme"] for outlook in report["outlooks"]] == ["none", "int8", "int4"]
    assert all(outlook["longest_context"] == 0 for outlook in report["outlooks"])
    assert report["available_bytes"] == 3 << 30


def test_the_built_in_model_fits_in_every_precision(run: Plan) -> None:
    done = run(str(BUILT_IN_DIR), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["architecture"] == "Glm4vForConditionalGeneration"
    weights = [
        item["num_bytes"]
        for outlook in report["outlooks"]
        for item in outlook["items"]
        if item["name"] == "weights"
    ]
    assert weights == sorted(weights, reverse=True)


def test_weights_that_are_here_are_compared_with_the_description(run: Plan, tmp_path: Path) -> None:
    done = run(str(BUILT_IN_DIR), "--json")
    stored = json.loads(done.stdout)["stored"]
    assert stored["used_bytes"] == stored["num_bytes"] == sum(stored["dtypes"].values())
    broken = tmp_path / "model"
    shutil.copytree(BUILT_IN_DIR, broken)
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    done = run(str(broken))
    assert done.returncode == 3
    assert "is truncated" in done.stderr
    (broken / "model.safetensors").unlink()  # a description alone is enough
    done = run(str(broken), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-model-len", "100k"), "the model's max_position_embeddings is 65,536"),
        (("--memory", "lots"), "'lots' is not a quantity"),
        (("--memory", "24"), "a number alone is bytes: 24GiB"),
        (("--gpu-memory", "24GiB,24"), "--gpu-memory is 24 B, and no model fits"),
        (("--concurrency", "0"), "greater than or equal to 1"),
    ],
)
def test_bad_settings_are_refused(
    run: Plan, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run(str(write_autoglm(tmp_path)), *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


def test_a_model_that_transformers_runs_is_refused_by_what_runs_it(
    run: Plan, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
    done = run(str(path))
    assert done.returncode == 2
    assert "served through transformers (no family file for GPT2LMHeadModel)" in done.stderr
    assert "--executor" not in done.stderr


def test_a_model_that_is_not_there_is_named(run: Plan) -> None:
    done = run("/no/such/model")
    assert done.returncode != 0
    assert "/no/such/model" in done.stderr


def test_a_model_is_spread_over_the_gpus_that_are_planned_for(run: Plan, tmp_path: Path) -> None:
    path = str(write_autoglm(tmp_path))
    done = run(path, "--memory", "32GiB", "--gpu-memory", "12GiB,12GiB", "--json")
    assert done.returncode == 0, done.stderr
    maps = {o["scheme"]: o["device_map"] for o in json.loads(done.stdout)["outlooks"]}
    assert [one["device"] for one in maps["none"]] == ["gpu 0", "gpu 1"]
    assert [one["device"] for one in maps["int4"]] == ["gpu 0"]
    assert sum(one["num_parts"] for one in maps["none"]) == 43
    shown = run(path, "--memory", "32GiB", "--gpu-memory", "8GiB").stdout
    assert "bfloat16: gpu 0: vision to layer" in shown
    bad = run(path, "--gpu-memory", "8GiB,none")
    assert "--gpu-memory: 'none' is not a quantity" in bad.stderr
