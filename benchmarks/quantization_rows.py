"""The rows of `quantization_table`, and how the weights of each are made.

Everything that hearth's command line or llama.cpp decides is here: a checkpoint comes from
`quantize_worker`, a GGUF file and its logits from `peers/workers/llama_cpp_logits.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.divergence_scores import Logits
from benchmarks.peers.environments import python_of

from hearth.core.errors import ConfigError, HearthError
from hearth.models.safetensors_file import read_checkpoint

PEER = "llama.cpp"
_WORKER = Path(__file__).parent / "peers" / "workers" / "llama_cpp_logits.py"
_ROOT = Path(__file__).parent.parent
GROUP_SIZES = (128, 64, 32)
METHODS = ("rtn", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Row:
    """One way to store the weights. `scheme`: of a checkpoint; `quantize`: at load; else dtype."""

    name: str
    method: str = ""
    group_size: int = 0
    kind: str = "hearth"
    scheme: str = ""
    quantize: str = "none"
    dtype: str = "auto"
    activations: str = "auto"
    ftype: str = ""
    is_read_here: bool = False  # llama.cpp's file, by hearth's kernels

    @property
    def label(self) -> str:
        """What `--only` looks into, such as `INT4 gptq g128`."""
        return f"{self.kind} {self.name} {self.method} g{self.group_size}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows share."""

    model: Path
    work: Path
    cache_dir: Path
    threads: int
    calibration: Path | None


@dataclass(frozen=True, slots=True)
class Made:
    """Weights on disk; no seconds and no peak where nothing was quantized."""

    path: Path
    file_bytes: int
    seconds: float = 0.0
    peak_bytes: int = 0


def rows_of() -> list[Row]:
    """All of the table, in order."""
    int4 = [
        Row(name, method, group, scheme=scheme)
        for group in GROUP_SIZES
        for name, scheme in (("INT4", "w4a16"), ("INT4, zero points", "w4a16-asym"))
        for method in METHODS
    ]
    int8 = [Row("INT8", method, 128, scheme="w8a16") for method in ("rtn", "gptq")]
    return [
        Row("BF16", dtype="bfloat16"),
        Row("FP16", dtype="float16"),
        Row("FP8", "rtn", scheme="fp8"),
        *int8,
        Row("INT8, one scale a row", "rtn", scheme="w8a8"),
        *int4,
        Row("FP8, embedding too", "at load", 128, quantize="fp8"),
        Row("INT8, embedding too", "at load", 128, quantize="int8"),
        *(Row("INT4, embedding INT8", "at load", g, quantize="int4") for g in GROUP_SIZES),
        *(
            Row(f"llama.cpp {ftype}", kind=PEER, ftype=ftype)
            for ftype in ("BF16", "F16", "Q8_0", "Q4_K_M", "Q4_0")
        ),
        *(
            Row(f"llama.cpp's {ftype} file in hearth", kind=PEER, ftype=ftype, is_read_here=True)
            for ftype in ("BF16", "F16", "Q8_0", "Q4_K_M", "Q4_0")
        ),
    ]


def weight_bytes(model: Path) -> int:
    """Of all files of a directory's weights. Raises WeightsError."""
    return sum(path.stat().st_size for path in read_checkpoint(model).files)


def make_checkpoint(setting: Setting, row: Row, out: Path) -> Made:
    """In a process of its own; a row without a scheme is the model itself. Raises HearthError."""
    if not row.scheme:
        return Made(setting.model, weight_bytes(setting.model))
    command = [sys.executable, "-m", "benchmarks.quantize_worker", str(setting.model), str(out)]
    command += ["--scheme", row.scheme, "--method", row.method]
    if row.group_size:
        command += ["--group-size", str(row.group_size)]
    if setting.calibration:
        command += ["--calibration", str(setting.calibration.resolve())]
    told = _told(command, "quantizing")
    return Made(out, weight_bytes(out), told["seconds"], told["peak_bytes"])


def _told(command: Sequence[str], what: str) -> dict[str, Any]:
    """The JSON of a worker's last line. Raises HearthError with its own message."""
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    lines = ended.stdout.strip().splitlines()
    try:
        told: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        errors = ended.stderr.strip().splitlines() or [f"code {ended.returncode}"]
        raise HearthError(f"{what} failed: {errors[-1]}") from error
    if "refused" in told:
        raise HearthError(told["refused"])
    return told


def write_gguf(setting: Setting) -> Path:
    """The model in bfloat16, once. Raises ConfigError, HearthError."""
    path = setting.work / "model-bf16.gguf"
    if not path.exists():
        command = [*_peer_command(setting), "write", str(setting.model), str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            lines = ended.stderr.strip().splitlines() or ["no message"]
            raise HearthError(f"the model cannot be written as GGUF: {lines[-1]}")
    return path


def make_gguf(setting: Setting, row: Row, plain: Path) -> Made:
    """Quantized by llama.cpp. Raises HearthError."""
    if row.ftype == "BF16":
        return Made(plain, plain.stat().st_size)
    path = setting.work / f"model-{row.ftype}.gguf"
    command = [*_peer_command(setting), "quantize", str(plain), str(path), row.ftype]
    told = _told(command, "llama.cpp's quantizer")
    return Made(path, path.stat().st_size, told["seconds"], told["peak_bytes"])


@contextmanager
def peer_logits(
    setting: Setting, path: Path, sequences: Sequence[Sequence[int]], vocab_size: int
) -> Iterator[Iterator[Logits]]:
    """llama.cpp's, of one sequence at a time. Raises HearthError where it ends early."""
    command = [*_peer_command(setting), "logits", str(path), str(setting.threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield _received(process, sequences, vocab_size)


def _received(
    process: subprocess.Popen[bytes], sequences: Sequence[Sequence[int]], vocab_size: int
) -> Iterator[Logits]:
    assert process.stdin is not None
    assert process.stdout is not None
    for one in sequences:
        process.stdin.write(json.dumps(list(one)).encode() + b"\n")
        process.stdin.flush()
        raw = process.stdout.read(4 * len(one) * vocab_size)
        if len(raw) < 4 * len(one) * vocab_size:
            raise HearthError("llama.cpp ended before its last logits")
        yield np.frombuffer(raw, np.float32).reshape(len(one), vocab_size)


def _peer_command(setting: Setting) -> list[str]:
    python = python_of(PEER, setting.cache_dir)
    if not python.exists():
        raise ConfigError(
            f"{python} does not exist", hint="make it: python -m benchmarks.peers install llama.cpp"
        )
    return [str(python), str(_WORKER)]
