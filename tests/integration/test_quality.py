"""`hearth quality` as users run it, and what a server then says and refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import pytest
from tests.integration.server import SMALL, Server, environment, run_to_end
from tests.support.shards import sharded_model

from hearth.cli.settings import BUILT_IN_DIR
from hearth.core.quality import REPORT_FILE
from hearth.quant.checkpoint import quantize_directory, scheme_of

MODEL = str(BUILT_IN_DIR)
QUICK = ("--tokens", "400", "--context", "128", "--answers", "2", "--answer-tokens", "8")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hearth.cli", "quality", *arguments]


def quality(
    *arguments: str, cache: Path, wanted: int = 0, extra: Sequence[str] = QUICK
) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        command(*arguments, *extra),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(XDG_CACHE_HOME=str(cache)),
    )
    assert found.returncode == wanted, found.stderr
    return found


def test_the_table_says_everything(tmp_path: Path) -> None:
    text = quality(MODEL, "--quantize", "int4", cache=tmp_path).stdout
    for part in (
        "int4 ",
        "reference:",
        "perplexity",
        "paired, token by token",
        "KL divergence",
        "99.9 %",
        "root mean square",
        "same best token",
        "until they part",
        "worst layer",
        "worst matrices",
        "warning: perplexity",  # the built-in model knows no such text
    ):
        assert part in text, text


def test_json_and_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    found = quality(MODEL, "--quantize", "int4", "--json", "--plot", str(plot), cache=tmp_path)
    body = json.loads(found.stdout)
    assert body["num_tokens"] == 400 - 4
    assert body["divergence"]["kl"]["mean"] > 0
    assert body["divergence"]["perplexity_change"]["error"] > 0
    assert len(body["greedy"]["equal_tokens"]) == 2
    assert len(body["layers"]["layers"]) == 8
    assert body["text"]["name"] == "builtin"
    root = ET.fromstring(plot.read_text(encoding="utf-8"))
    text = "".join(root.itertext())
    for title in ("KL divergence by share of tokens", "Error of each layer by itself"):
        assert title in text


def test_a_stored_report_is_shown_by_the_server(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    with Server(tmp_path, MODEL, "--quantize", "int4", *SMALL, **cache) as server:
        (line,) = [x for x in server.stdout.splitlines() if "quality:" in x]
        assert "quality: 4-bit codes lose about " in line
        assert "perplexity not measured: hearth quality" in line
        card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        assert card["quality"]["perplexity"] is None
        errors = card["quality"]["rounding"]["errors"]
        assert 0.005 < errors["int4"] < 0.015  # groups of 64 and 128
        assert errors["int8"] < 1e-4
        assert card["quality"]["rounding"]["worst_error"] > errors["int4"]
    found = quality(MODEL, "--quantize", "int4", "--store", cache=tmp_path)
    assert "stored: " in found.stderr
    with Server(tmp_path, MODEL, "--quantize", "int4", *SMALL, **cache) as server:
        (line,) = [x for x in server.stdout.splitlines() if "quality:" in x]
        assert "perplexity" in line
        assert "same best token" in line
        assert "builtin text, 396 tokens" in line
        assert "best tokens as measured on" in server.stdout
        card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        assert card["quality"]["kl_divergence"] > 0
        assert 0 < card["quality"]["same_best_token"] < 1
        assert card["quality"]["text"] == "builtin"
    with Server(tmp_path, MODEL, "--quantize", "int8", *SMALL, **cache) as server:
        assert "quality: 8-bit codes lose about" in server.stdout  # that was of int4


def test_a_quantized_checkpoint_needs_to_know_what_it_is_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "int4"
    quantize_directory(BUILT_IN_DIR, path, scheme_of("int4", 64), lambda *_: None)
    found = quality(str(path), cache=tmp_path, wanted=2)
    assert "what it is compared with must be named" in found.stderr
    assert "--against none" in found.stderr
    alone = quality(str(path), "--against", "none", "--json", cache=tmp_path)
    assert json.loads(alone.stdout)["divergence"] is None
    found = quality(str(path), "--against", MODEL, "--store", cache=tmp_path)
    assert "KL divergence" in found.stdout
    body = json.loads((path / REPORT_FILE).read_text())
    assert body["method"] == "checkpoint, compressed-tensors"
    with Server(tmp_path, str(path), *SMALL) as server:
        assert "quality: perplexity" in server.stdout


def test_an_unquantized_model_alone_has_a_perplexity(tmp_path: Path) -> None:
    body = json.loads(quality(MODEL, "--json", cache=tmp_path).stdout)
    assert body["reference"] is None
    assert body["perplexity"]["mean"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "/nowhere/text"), "cannot be read: No such file"),
        (("--context", "100000"), "MODEL supports"),
        (("--plot", "plot.png"), "ends in .svg"),
        (("--plot", "/nowhere/plot.svg"), "there is no directory"),
        (("--quantize-group-size", "48"), "permitted: 32, 64, 128"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    found = quality(MODEL, *arguments, cache=tmp_path, wanted=2, extra=())
    assert message in found.stderr
    assert found.stdout == ""


def test_an_interrupt_ends_with_what_is_known_and_stores_nothing(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("hello world, this is a long text.\n" * 100_000)
    process = subprocess.Popen(
        command(MODEL, "--quantize", "int4", "--text", str(text), "--tokens", "10M", "--store"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "tokens:" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in out
    assert "KL divergence" in out
    assert not list((tmp_path / "cache").rglob("*.json"))


def broken_model(path: Path) -> Path:
    """NaN in one matrix of the last layer."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("7.mlp.down_proj.weight"):
            return data
        values = np.frombuffer(data, np.uint16).copy()
        values[5] = 0x7FC0  # bfloat16 NaN
        return values.tobytes()

    path.mkdir()
    for name, content in sharded_model(1, change).items():
        (path / name).write_bytes(content)
    return path


def test_a_model_that_gives_garbage_is_not_served(tmp_path: Path) -> None:
    path = broken_model(tmp_path / "broken")
    found = run_to_end(str(path), "--port", "0", *SMALL, XDG_RUNTIME_DIR=str(tmp_path))
    assert found.returncode == 5
    assert "the start-up canary" in found.stderr
    assert "not finite" in found.stderr
    assert "what to do" in found.stderr
    assert "Try it" not in found.stdout
    with Server(tmp_path, str(path), "--no-canary", *SMALL) as server:
        assert "canary: off" in server.stdout
