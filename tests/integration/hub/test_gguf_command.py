"""GGUF models of a hub by the real commands: planned, pulled, listed, killed, served, removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tests.integration.hub.test_pull_command import (
    environment,
    hearth,
    largest_part,
    started,
    wait_until,
)
from tests.integration.server import SMALL, Server
from tests.support.gguf_models import save_gguf
from tests.support.gguf_writer import finish
from tests.support.hub_server import COMMIT, REPO, FakeHub, Fault
from tools.demo_model import TEXT_MODEL_DIR
from transformers import AutoModelForCausalLM

QUESTION = "What is hearth?"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The trained text model in several quantizations, with its tokenizer."""
    directory = tmp_path_factory.mktemp("repository")
    for pattern in ("tokenizer*.json", "*.jinja", "generation_config.json"):
        for path in TEXT_MODEL_DIR.glob(pattern):
            shutil.copy(path, directory)
    original = AutoModelForCausalLM.from_pretrained(TEXT_MODEL_DIR)
    save_gguf(original, directory / "small-Q8_0.gguf", lambda _: Type.Q8_0)
    save_gguf(original, directory / "small-Q5_1.gguf", lambda _: Type.Q5_1)
    save_gguf(original, directory / "small-F16.gguf", lambda _: Type.F16, part_tensors=12)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    parts = [name for name in files if name.startswith("small-F16-")]
    assert len(parts) > 1
    return {(f"F16/{name}" if name in parts else name): data for name, data in files.items()}


@pytest.fixture
def hub(repository: dict[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(repository) as server:
        yield server


def variables(hub: FakeHub | None, root: Path) -> dict[str, str]:
    """Of a process that uses the store and nothing of the user's own."""
    found = environment(hub, root, XDG_CACHE_HOME=str(root / "cache"))
    return {key: found[key] for key in ("HEARTH_MODELS_DIR", "HF_ENDPOINT", "XDG_CACHE_HOME")}


def test_one_quantization_is_pulled_listed_served_and_removed(hub: FakeHub, tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    unclear = hearth(hub, tmp_path, "pull", REPO, "--source", "hf", **cache)
    assert unclear.returncode == 2
    assert "has 3 GGUF models" in unclear.stderr
    assert "Q5_1: small-Q5_1.gguf" in unclear.stderr
    assert "in memory" in unclear.stderr
    done = hearth(hub, tmp_path, "pull", f"{REPO}:q8_0", "--source", "hf", **cache)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    directory = Path(done.stdout.strip())
    assert [path.name for path in directory.glob("*.gguf")] == ["small-Q8_0.gguf"]
    other = hearth(hub, tmp_path, "pull", REPO, "--file", "small-Q5_1.gguf", **cache)
    assert other.returncode == 0, other.stderr
    listed = hearth(None, tmp_path, "models").stdout
    assert f"{REPO}:Q8_0  main      {COMMIT[:12]}" in listed
    assert f"{REPO}:Q5_1" in listed
    verified = hearth(None, tmp_path, "models", "verify", f"{REPO}:Q8_0", **cache)
    assert verified.returncode == 0, verified.stderr
    assert f"{REPO}:Q8_0@{COMMIT[:12]}" in verified.stdout
    planned = hearth(None, tmp_path, "plan", f"{REPO}:Q8_0", "--json", **cache)
    assert json.loads(planned.stdout)["stored"]["dtypes"].keys() == {"Q8_0", "F32"}
    doctor = hearth(None, tmp_path, "doctor", f"{REPO}:Q8_0", "--json", **cache)
    wanted = [check["wanted"] for check in json.loads(doctor.stdout)["checks"]]
    assert any("the size of the weights" in text for text in wanted)
    removed = hearth(None, tmp_path, "models", "remove", f"{REPO}:Q5_1", "--yes")
    assert removed.returncode == 0, removed.stderr
    for name in (f"{REPO}:Q8_0", REPO):
        log = tmp_path / name.replace("/", "-").replace(":", "-")
        log.mkdir()
        with Server(log, name, *SMALL, **variables(None, tmp_path)) as server:
            assert "hearth" in server.ask(QUESTION)
            names = [m["id"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]]
        assert names == [name]


def test_parts_are_served_as_the_model_they_are(hub: FakeHub, tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = hearth(hub, tmp_path, "pull", f"{REPO}:F16", "--source", "hf", **cache)
    assert done.returncode == 0, done.stderr
    with Server(tmp_path, f"{REPO}:F16", *SMALL, **variables(None, tmp_path)) as server:
        answer = server.ask(QUESTION)
    (tmp_path / "original").mkdir()
    with Server(tmp_path / "original", str(TEXT_MODEL_DIR), *SMALL) as server:
        assert server.ask(QUESTION) == answer


def test_a_killed_pull_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    weights = "small-Q8_0.gguf"
    hold_at = len(hub.files[weights]) // 2
    hub.fail(weights, Fault(hold=hold_at))
    with started(hub, tmp_path, more=("--file", weights)) as process:
        wait_until(lambda: largest_part(tmp_path) >= hold_at)
        process.kill()
        process.wait()
    assert "not" in hearth(None, tmp_path, "serve", f"{REPO}:Q8_0").stderr
    hub.released.set()
    done = hearth(hub, tmp_path, "pull", f"{REPO}:Q8_0", "--source", "hf")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(weights)[-1] == f"bytes={hold_at}-"
    assert (Path(done.stdout.strip()) / weights).read_bytes() == hub.files[weights]


def test_it_is_staged_and_the_copy_is_served_by_path(hub: FakeHub, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    done = hearth(hub, tmp_path, "pull", f"{REPO}:Q8_0", "--source", "hf", "--stage", str(fast))
    assert done.returncode == 0, done.stderr
    copy = Path(done.stdout.strip())
    assert copy.is_relative_to(fast)
    planned = hearth(None, tmp_path, "plan", str(copy))
    assert planned.returncode == 0, planned.stderr
    with Server(
        tmp_path, f"{REPO}:Q8_0", *SMALL, "--stage", str(fast), **variables(None, tmp_path)
    ) as server:
        assert "hearth" in server.ask(QUESTION)
        names = [m["id"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert names == [f"{REPO}:Q8_0"]


def test_flags_that_contradict_each_other_are_messages(hub: FakeHub, tmp_path: Path) -> None:
    for more, says in (
        ((f"{REPO}:Q8_0", "--file", "small-Q5_1.gguf"), "both name the GGUF file"),
        ((f"{REPO}:Q8_0", "--include", "*.json"), "chooses files by patterns"),
        ((f"{REPO}:Q8_0", "--quantize", "int4"), "converts safetensors"),
        ((f"{REPO}:", ), "is not the tag of a GGUF file"),
    ):  # fmt: skip
        done = hearth(hub, tmp_path, "pull", *more)
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
    assert not hub.seen


def test_one_that_hearth_does_not_know_is_a_note_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    finish(writer)
    files = {"other-Q8_0.gguf": path.read_bytes(), "cut-Q4_0.gguf": b"GGUF" + b"\3\0\0\0" * 9}
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with FakeHub(files) as hub:
        unknown = hearth(hub, tmp_path, "pull", f"{REPO}:Q8_0", **cache)
        damaged = hearth(hub, tmp_path, "pull", f"{REPO}:Q4_0", **cache)
    assert unknown.returncode == 0, unknown.stderr
    assert "note: " in unknown.stderr
    assert "'mamba'" in unknown.stderr
    assert damaged.returncode == 3
    assert "error: " in damaged.stderr
    assert "cut-Q4_0.gguf" in damaged.stderr


def test_it_is_planned_before_it_is_pulled_from_its_header_alone(tmp_path: Path) -> None:
    """Planned as the file itself is, with what it takes in memory, for a fraction of its bytes."""
    config = AutoModelForCausalLM.from_pretrained(TEXT_MODEL_DIR)
    here = tmp_path / "here"
    here.mkdir()
    path = here / "small-Q5_1.gguf"
    save_gguf(config, path, lambda _: Type.Q5_1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TEXT_MODEL_DIR / name, here)
    data = path.read_bytes() + bytes(12 << 20)  # so that what is read is little of it
    path.write_bytes(data)
    how = ("--json", "--memory", "8GiB")
    local = hearth(None, tmp_path, "plan", str(path), *how, XDG_CACHE_HOME=str(tmp_path))
    assert local.returncode == 0, local.stderr
    files = {p.name: p.read_bytes() for p in here.iterdir()} | {"small-Q2_K.gguf": b"x" * 99}
    with FakeHub(files) as hub:
        unclear = hearth(hub, tmp_path, "plan", REPO, "--source", "hf")
        done = hearth(hub, tmp_path, "plan", f"{REPO}:Q5_1", "--source", "hf", *how)
        asked = hub.ranges("small-Q5_1.gguf")
        assert "" not in hub.ranges("tokenizer.json")
    assert unclear.returncode == 2
    assert "has 2 GGUF models" in unclear.stderr
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), json.loads(local.stdout)
    assert found["stored"] == expected["stored"]
    assert found["outlooks"] == expected["outlooks"]
    assert found["download"]["weight_bytes"] == len(data)
    last = max(int(text.partition("-")[2]) for text in asked)
    assert all(asked)
    assert last < 2 << 20 < len(data)
    assert not list(tmp_path.glob("test-org--*"))
