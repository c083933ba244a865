"""`hearth quantize` as people run it: killed, without room, with files that are wrong."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.hf_models import ModelCase, build_model
from tools.demo_model import TEXT_MODEL_DIR

from hearth.cli.quantize_quality import measure
from hearth.core.config import EngineConfig, ModelConfig
from hearth.core.quality import REPORT_FILE
from hearth.engine.quality_store import find_quality
from hearth.host.memory import HostMemory, MemoryFact
from hearth.models.loader import load_model_spec
from hearth.models.safetensors_file import read_checkpoint, read_header
from hearth.models.safetensors_writer import SafetensorsWriter, TensorSpec
from hearth.quant import sides

SMALL = ("--calibration-sequences", "12", "--calibration-length", "96")
TIMEOUT_S = 120


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hearth.cli", "quantize", *map(str, arguments)]


def run(
    *arguments: str | Path, limit: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
        preexec_fn=limit, env=environment(),
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def contents(directory: Path) -> dict[str, bytes]:
    """Of the checkpoint: the report beside it has a date."""
    paths = [path for path in directory.iterdir() if path.name != REPORT_FILE]
    return {path.name: path.read_bytes() for path in paths}


def killed_when(path: Path, after_s: float, *arguments: str | Path) -> None:
    """Starts the command and kills it some time after a file is there."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(),
    )  # fmt: skip
    end = time.monotonic() + TIMEOUT_S
    try:
        while not path.exists():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(after_s)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four small layers, with the text model's tokenizer."""
    path = tmp_path_factory.mktemp("model")
    sizes = {
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 3072, "num_hidden_layers": 4,
    }  # fmt: skip
    build_model(ModelCase("small", "glm4", 5, sizes)).to(torch.bfloat16).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (path / name).write_bytes((TEXT_MODEL_DIR / name).read_bytes())
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, dict[str, bytes]]:
    """What comes of a run that nobody disturbs, by method."""
    results = {}
    for method in ("gptq", "awq"):
        target = tmp_path_factory.mktemp("whole") / method
        done = run(model, "-o", target, "--method", method, *SMALL)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{target}\n"
        results[method] = contents(target)
    return results


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_killed_again_and_again_it_ends_with_the_same_files(
    tmp_path: Path, model: Path, whole: dict[str, dict[str, bytes]], method: str
) -> None:
    target = tmp_path / "q"
    arguments = (model, "-o", target, "--method", method, *SMALL)
    killed_when(target / "layer-00000.safetensors", 0.0, *arguments)
    assert not (target / "config.json").exists()
    killed_when(target / "layer-00001.safetensors", 0.0, *arguments)
    kept = (target / "layer-00000.safetensors").stat().st_mtime_ns
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "goes on" in done.stderr  # a quick machine may have done all layers by then
    assert (target / "layer-00000.safetensors").stat().st_mtime_ns == kept
    assert contents(target) == whole[method]


def test_other_orders_take_nothing_from_what_was_left(
    tmp_path: Path, model: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    target = tmp_path / "q"
    killed_when(
        target / "layer-00001.safetensors", 0.0,
        model, "-o", target, "--method", "awq", *SMALL,
    )  # fmt: skip
    done = run(model, "-o", target, "--method", "gptq", *SMALL)
    assert "goes on" not in done.stderr
    assert contents(target) == whole["gptq"]
    # And a plain rounding over the remains of one.
    (target / "config.json").unlink()
    (target / "model.safetensors.index.json").unlink()
    done = run(model, "-o", target)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in target.glob("*.safetensors")} == {"model.safetensors"}


def test_a_state_file_that_is_gone_costs_time_but_no_result(
    tmp_path: Path, model: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    target = tmp_path / "q"
    arguments = (model, "-o", target, "--method", "gptq", *SMALL)
    killed_when(target / "layer-00001.safetensors", 0.0, *arguments)
    for path in target.glob("states-*"):
        path.unlink()
    done = run(*arguments)
    assert "begins again" in done.stderr
    assert contents(target) == whole["gptq"]


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("sequences", [12, 2], ids=["at the states", "behind the layers"])
def test_a_disk_that_fills_up_is_an_error_and_nothing_is_lost(
    tmp_path: Path, model: Path, whole: dict[str, dict[str, bytes]], sequences: int
) -> None:
    """States take 295 or 49 kB, layers less than 100, the embedding 393."""
    target = tmp_path / "q"
    extra = ("--calibration-sequences", str(sequences))
    arguments = (model, "-o", target, "--method", "gptq", *SMALL, *extra)
    done = run(*arguments, limit=limited)
    assert done.returncode == 4, done.stderr
    assert "free space" in done.stderr
    assert not (target / "config.json").exists()
    assert not list(target.glob("*.part"))
    layers = {path.name: path.stat().st_mtime_ns for path in target.glob("layer-*")}
    assert len(layers) == (0 if sequences == 12 else 4)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    for name, changed in layers.items():
        assert (target / name).stat().st_mtime_ns == changed
    if sequences == 12:
        assert contents(target) == whole["gptq"]


def test_two_at_once_do_not_write_into_one_directory(tmp_path: Path, model: Path) -> None:
    target = tmp_path / "q"
    first = subprocess.Popen(
        command(model, "-o", target, "--method", "gptq", *SMALL),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        while not target.exists() or not any(target.iterdir()):
            assert first.poll() is None
            time.sleep(0.01)
        second = run(model, "-o", target)
        assert second.returncode == 9
        assert "another process" in second.stderr
    finally:
        _, errors = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 0, errors


def damaged(path: Path, tensor: str, value: float) -> Path:
    """The small text model with one value changed in one tensor."""
    path.mkdir()
    for file in TEXT_MODEL_DIR.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    raw = bytearray((path / "model.safetensors").read_bytes())
    entry = read_header(path / "model.safetensors")[tensor]
    bits = np.float32(value).view(np.uint32) >> 16
    raw[entry.begin + 20 : entry.begin + 22] = int(bits).to_bytes(2, "little")
    (path / "model.safetensors").write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("method", "value"), [("rtn", float("inf")), ("gptq", float("nan")), ("awq", float("inf"))]
)
def test_weights_that_are_not_finite_are_named(tmp_path: Path, method: str, value: float) -> None:
    tensor = "model.layers.2.mlp.down_proj.weight"
    source = damaged(tmp_path / "source", tensor, value)
    done = run(source, "-o", tmp_path / "q", "--method", method, *SMALL)
    assert done.returncode == 3
    assert f"tensor {tensor}" in done.stderr
    assert "not finite" in done.stderr
    assert not (tmp_path / "q" / "config.json").exists()


def test_a_norm_that_is_not_finite_is_found_by_what_it_feeds(tmp_path: Path) -> None:
    source = damaged(tmp_path / "source", "model.layers.1.input_layernorm.weight", float("nan"))
    done = run(source, "-o", tmp_path / "q", "--method", "gptq", *SMALL)
    assert done.returncode == 3
    assert "layer 1: self_attn.q_proj reads values that are not finite" in done.stderr


def quantized(tmp_path: Path) -> Path:
    assert run(TEXT_MODEL_DIR, "-o", tmp_path / "once").returncode == 0
    return tmp_path / "once"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--scheme", "w8a8", "--group-size", "64"), 2, "w8a8 has one scale for a whole row"),
        (("--scheme", "fp8", "--group-size", "64"), 2, "fp8 has one scale for a whole row"),
        (("--scheme", "fp8", "--method", "gptq"), 2, "permitted: rtn"),
        (("--scheme", "fp8", "--method", "awq"), 2, "permitted: rtn"),
        (("--group-size", "48"), 2, "--group-size is 48; permitted: 32, 64, 128"),
        (("--ignore", "model.layers.0.nothing"), 2, "names no matrix"),
        (("--ignore", "re:("), 2, "no regular expression"),
        (("--ignore", "re:.*q_proj"), 2, "multiplied together"),
        (("--method", "gptq", "--calibration", "/nowhere.txt"), 2, "cannot be read"),
        (("--method", "gptq", "--calibration-length", "5000"), 2, "up to 4,096"),
        (("--method", "awq", "--calibration", str(TEXT_MODEL_DIR / "model.safetensors")), 2,
         "no text in UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_says_what_can(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(TEXT_MODEL_DIR, "-o", tmp_path / "q", *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_is_too_short_is_an_error_and_a_short_one_a_warning(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hearth serves models. " * 3)
    arguments = (TEXT_MODEL_DIR, "-o", tmp_path / "q", "--method", "gptq", "--calibration", text)
    done = run(*arguments)
    assert done.returncode == 2
    assert "permitted: at least 512" in done.stderr
    text.write_text("hearth serves models, one after the other. " * 60)
    done = run(*arguments, "--calibration-length", "64")
    assert done.returncode == 0
    assert "warning: the text of --calibration" in done.stderr


def test_nothing_is_quantized_twice_and_no_model_is_written_over(tmp_path: Path) -> None:
    once = quantized(tmp_path)
    for method in ("rtn", "gptq"):
        done = run(once, "-o", tmp_path / "twice", "--method", method, *SMALL)
        assert done.returncode == 2
        assert "quantized already" in done.stderr
        done = run(TEXT_MODEL_DIR, "-o", once, "--method", method, *SMALL)
        assert done.returncode == 2
        assert "holds a model already" in done.stderr
    done = run(TEXT_MODEL_DIR, "-o", TEXT_MODEL_DIR)
    assert done.returncode == 2
    assert "is the model itself" in done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """As on a machine without torch: its directory hides the package."""
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a)\n"
        "from hearth.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", str(TEXT_MODEL_DIR), "-o", str(tmp_path / "q"),
         "--method", "gptq"],
        check=False, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'hearth[torch]'" in done.stderr


def test_rounding_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from hearth.cli.main import app\n"
        f"app(['quantize', {str(TEXT_MODEL_DIR)!r}, '-o', {str(tmp_path / 'q')!r}, "
        "'--scheme', 'w8a8'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]


def test_a_checkpoint_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in TEXT_MODEL_DIR.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = read_checkpoint(TEXT_MODEL_DIR).tensors
    kept = {n: e for n, e in tensors.items() if n != "model.layers.3.self_attn.o_proj.weight"}
    specs = [TensorSpec(name, entry.dtype, entry.shape) for name, entry in kept.items()]
    raw = (TEXT_MODEL_DIR / "model.safetensors").read_bytes()
    with SafetensorsWriter(source / "model.safetensors", specs, {}) as writer:
        for name, entry in kept.items():
            writer.write(name, np.frombuffer(raw[entry.begin : entry.end], np.uint8))
    done = run(source, "-o", tmp_path / "q", "--method", "gptq", *SMALL)
    assert done.returncode == 3
    assert "model.layers.3.self_attn.o_proj.weight" in done.stderr


def report_of(directory: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((directory / REPORT_FILE).read_text())
    return found


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_it_cost_is_shown_and_kept_with_the_checkpoint(
    tmp_path: Path, model: Path, method: str
) -> None:
    target = tmp_path / "q"
    done = run(model, "-o", target, "--method", method, *SMALL)
    assert done.returncode == 0, done.stderr
    report = report_of(target)
    kl, change, count = (report[name] for name in ("kl", "perplexity_change", "num_tokens"))
    assert isinstance(kl, float)
    assert isinstance(change, float)
    assert isinstance(count, int)
    assert kl > 0
    assert f"quality: perplexity {100 * change:+.2f} %, KL {kl:.2g}," in done.stderr
    assert report["method"] == f"w4a16 by {method}"
    assert count > 4000
    # What was calibrated on tells nothing of what was lost.
    held_out = "unseen lines of builtin"
    assert report["text"] == ("builtin" if method == "rtn" else held_out)
    # It is the one that a server looks for.
    note = find_quality(load_model_spec(target), EngineConfig(ModelConfig(str(target))))
    assert note.summary is not None
    assert note.summary.kl == kl


def test_no_quality_measures_nothing(tmp_path: Path, model: Path) -> None:
    done = run(model, "-o", tmp_path / "q", "--no-quality")
    assert done.returncode == 0
    assert "quality" not in done.stderr
    assert not (tmp_path / "q" / REPORT_FILE).exists()


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_killed_while_it_measures_it_does_not_quantize_again(
    tmp_path: Path, model: Path, method: str
) -> None:
    target = tmp_path / "q"
    arguments = (model, "-o", target, "--method", method, *SMALL)
    killed_when(target / "config.json", 0.0, *arguments)
    assert not (target / REPORT_FILE).exists()
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "is whole already, by the same order: measured only" in done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert after.pop(REPORT_FILE)
    assert after == before
    # Measured once, it is a model like others; and another order finds no place there.
    assert run(*arguments).returncode == 2
    (target / REPORT_FILE).unlink()
    done = run(*arguments, "--scheme", "w8a16")
    assert done.returncode == 2
    assert "holds a model already" in done.stderr


def test_the_rest_of_a_calibration_text_is_measured_on_where_there_is_one(
    tmp_path: Path, model: Path
) -> None:
    text = tmp_path / "mine.txt"
    lines = [
        f"Line {i} says once more that {i * 7919 % 1000} is not {i * 104729 % 9973}, nor will be.\n"
        for i in range(900)
    ]
    arguments = (model, "-o", tmp_path / "q", "--method", "awq", "--calibration", text, *SMALL)
    text.write_text("".join(lines))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path / "q")["text"] == "unseen lines of mine.txt"
    text.write_text("".join(lines[:60]))
    done = run(*arguments[:2], tmp_path / "short", *arguments[3:])
    assert done.returncode == 0, done.stderr
    assert "tokens that were not calibrated on: quality is measured on the builtin" in done.stderr
    assert report_of(tmp_path / "short")["text"] == "unseen lines of builtin"


def test_a_checkpoint_that_cannot_be_measured_is_good_all_the_same(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "it's"
    assert run(model, "-o", target, "--no-quality").returncode == 0
    none = HostMemory((MemoryFact(1, "a test"),))
    monkeypatch.setattr(sides, "read_memory", lambda: none)
    measure(model, target, "w4a16 by rtn", None)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "quality:" in one]
    assert line.startswith("quality: not measured: ")
    assert line.endswith(
        f"hearth quality {shlex.quote(str(target))} --against {model} --store measures it"
    )
    assert not (target / REPORT_FILE).exists()
