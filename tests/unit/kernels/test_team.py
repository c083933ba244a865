"""The thread team under ThreadSanitizer: tiles run once, stages follow each other."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = REPOSITORY / "src" / "hearth" / "kernels" / "cpu" / "csrc"


def test_random_jobs_run_every_tile_once_and_stages_in_order(tmp_path: Path) -> None:
    program = tmp_path / "team_stress"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{SOURCES}"]
    sources = [str(REPOSITORY / "tests" / "native" / "team_stress.cpp"), str(SOURCES / "team.cpp")]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), "1000"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 wrong\n", "")
