"""The thread team: tiles run once, stages follow each other (under ThreadSanitizer); affinities."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = REPOSITORY / "src" / "hearth" / "kernels" / "cpu" / "csrc"
CPUS = sorted(os.sched_getaffinity(0))


def build(tmp_path: Path, name: str, *flags: str) -> Path:
    program = tmp_path / name
    sources = [str(REPOSITORY / "tests" / "native" / f"{name}.cpp"), str(SOURCES / "team.cpp")]
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-pthread", f"-I{SOURCES}"]
    subprocess.run([*command, *flags, *sources, "-o", str(program)], check=True)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, env=environment
    )


def test_random_jobs_run_every_tile_once_and_stages_in_order(tmp_path: Path) -> None:
    done = run(build(tmp_path, "team_stress", "-g", "-fsanitize=thread"), "1000")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 wrong\n", "")


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: nobody can move a thread to another one")
def test_an_affinity_that_is_changed_while_a_job_runs_is_not_undone(tmp_path: Path) -> None:
    done = run(build(tmp_path, "team_affinity"), *map(str, CPUS[:2]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
