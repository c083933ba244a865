"""HEARTH_ISA: what runs, with its reason, and what cannot run, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.server import SMALL, Server, run_to_end


def test_the_variable_chooses_the_kernels_and_the_banner_says_so(tmp_path: Path) -> None:
    with Server(tmp_path, *SMALL, HEARTH_ISA="generic") as server:
        said = "running on: cpu: generic, "
        assert said in server.stdout
        assert "generic: as --isa (HEARTH_ISA) says" in server.stdout
        assert "server" in server.ask("What is hearth?")


def test_the_flag_wins_over_the_variable(tmp_path: Path) -> None:
    with Server(tmp_path, "--isa", "generic", *SMALL, HEARTH_ISA="avx9") as server:
        assert "cpu: generic" in server.stdout


@pytest.mark.parametrize(
    ("isa", "arguments", "words"),
    [
        ("avx9", (), "'avx9'; this processor and this build can run: "),
        ("avx2", ("--executor", "reference"), "chooses among the C++ kernels"),
    ],
)
def test_what_cannot_be_is_refused(isa: str, arguments: tuple[str, ...], words: str) -> None:
    done = run_to_end(*arguments, HEARTH_ISA=isa)
    assert done.returncode == 2
    assert words in done.stderr
    assert "leave it out" in done.stderr
