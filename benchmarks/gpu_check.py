"""Everything that a card can show, with one command: `make gpu-check`.

Tests under tests/gpu first, each file in a process of its own, so that a kernel that brings the
device down ends one file; then the kernels' own benchmarks, then rows of `gpu_rows`. A short table
comes last, and all of it goes as JSON to $OUT, or ./gpu-check. Below eight minutes; no network;
needs torch, triton and numpy, and pytest for the tests (without it they are reported as not run).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHOLE_S = 440.0
TESTS_S = 200.0  # of it at most, for tests
KERNELS_UNTIL_S = 290.0
# Without the project's own settings, whose plugins a bare machine does not have.
INI = "[pytest]\nmarkers =\n    gpu: needs a CUDA device\n    long: slow\n"


@dataclass(frozen=True, slots=True)
class TestFile:
    """How the tests of one file ended; `tail`: the last lines of what they printed."""

    name: str
    outcome: str  # passed, failed, timed out, not run
    seconds: float
    tail: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all tests passed and all rows were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("tests", "rows"), help="leave the other out")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT", ROOT / "gpu-check"))
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    machine = describe()
    print(json.dumps(machine), flush=True)
    if not machine["device"]:
        print(f"no CUDA device: {machine['why']}", file=sys.stderr)
        return 2
    files = [] if options.only == "rows" else run_tests(out, started + TESTS_S)
    measured: list[dict[str, object]] = []
    failure = ""
    kernels = [] if options.only == "tests" else run_kernels(out, started + KERNELS_UNTIL_S)
    if options.only != "tests":
        measured, failure = measure(started + WHOLE_S)
    result = {
        "machine": machine,
        "tests": [asdict(file) for file in files],
        "kernels": [asdict(file) for file in kernels],
        "rows": measured,
        "rows_ended_by": failure,
        "seconds": time.monotonic() - started,
    }
    (out / "gpu-check.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print_table(files + kernels, measured, failure)
    is_good = all(file.outcome == "passed" for file in files + kernels) and not failure
    return 0 if is_good else 1


def describe() -> dict[str, object]:
    """Versions and the card; `device` empty and `why` where there is none."""
    found: dict[str, object] = {"python": platform.python_version(), "device": "", "why": ""}
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            found["why"] = f"{name} is not installed"
            return found
    import torch
    import triton

    found |= {"torch": torch.__version__, "triton": triton.__version__}
    if not torch.cuda.is_available():
        found["why"] = "torch finds none"
        return found
    found["device"] = torch.cuda.get_device_name()
    found["capability"] = list(torch.cuda.get_device_capability())
    found["memory_bytes"] = list(torch.cuda.mem_get_info())
    return found


def run_tests(out: Path, deadline: float) -> list[TestFile]:
    """Each file of tests/gpu, in the order of their names, as long as there is time."""
    ini = out / "pytest.ini"
    ini.write_text(INI, encoding="utf-8")
    has_pytest = importlib.util.find_spec("pytest") is not None
    results = []
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        left = deadline - time.monotonic()
        if not has_pytest or left < 10:
            why = "no time left" if has_pytest else "pytest is not installed"
            results.append(TestFile(path.name, "not run", 0.0, why))
        else:
            results.append(_run_file(path, ini, left))
        print(f"{path.name}: {results[-1].outcome}, {results[-1].seconds:.0f} s", flush=True)
    return results


def run_kernels(out: Path, deadline: float) -> list[TestFile]:
    """Every benchmarks/gpu_*.py of kernels, by itself: it prints a table and takes --json FILE."""
    own = {"gpu_check.py", "gpu_rows.py"}
    results = []
    for path in sorted((ROOT / "benchmarks").glob("gpu_*.py")):
        if path.name in own:
            continue
        left = deadline - time.monotonic()
        if left < 10:
            results.append(TestFile(path.name, "not run", 0.0, "no time left"))
            continue
        command = [sys.executable, str(path), "--json", str(out / f"{path.stem}.json")]
        results.append(_run(path.name, command, left))
        print(results[-1].tail, flush=True)
    return results


def _run_file(path: Path, ini: Path, left_s: float) -> TestFile:
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-rfE", "-c", str(ini), "--rootdir", str(ROOT)),
        *("--import-mode=importlib", "-p", "no:cacheprovider", "--noconftest", "-m", "gpu"),
        str(path),
    ]
    return _run(path.name, command, left_s)


def _run(name: str, command: list[str], left_s: float) -> TestFile:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    environment.pop("TRITON_INTERPRET", None)
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=left_s,
            check=False,
        )
        outcome, printed = "passed" if done.returncode == 0 else "failed", done.stdout
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode(errors="replace")  # bytes, whatever was asked
        outcome = "timed out"
    return TestFile(name, outcome, time.monotonic() - started, printed[-6000:])


def measure(deadline: float) -> tuple[list[dict[str, object]], str]:
    """Rows until the deadline, and what ended them early, if anything did."""
    measured: list[dict[str, object]] = []
    try:
        from gpu_rows import rows

        for row in rows(deadline):
            measured.append({**asdict(row), "share": row.share})
            print(_line(measured[-1]), flush=True)
    except Exception as error:  # noqa: BLE001 -- what was measured before it is kept and shown
        return measured, f"{type(error).__name__}: {error}"
    return measured, ""


def _line(row: dict[str, object]) -> str:
    limit, share = row["limit"], row["share"]
    beside = ""
    if isinstance(limit, float) and isinstance(share, float):
        beside = f"   limit {limit:10.2f}   {100 * share:5.1f} %"
    return f"{row['name']!s:44}{row['value']:12.2f} {row['unit']!s:8}{beside}"


def print_table(files: list[TestFile], rows: list[dict[str, object]], failure: str) -> None:
    """What is looked at first, and so printed last."""
    print("\n== tests")
    for file in files:
        print(f"{file.name:44}{file.outcome:12}{file.seconds:8.1f} s")
        if file.outcome != "passed":
            print("    " + "\n    ".join(file.tail.strip().splitlines()[-12:]))
    print("== rows")
    for row in rows:
        print(_line(row))
    if failure:
        print(f"ended by {failure}")


if __name__ == "__main__":
    sys.exit(main())
