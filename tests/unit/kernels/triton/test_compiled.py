"""What Triton and ptxas make of the kernels for cards that are not here: read, not run.

In a process of its own: here the interpreter is chosen, for good, when triton is first imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
# capability, form, "split" or "whole" (columns in segments, or not), tokens
CASES = (
    "90,dense,split,1", "90,int4,split,1", "90,dense,split,4096", "90,dense,gated,4096",
    "90,int4,whole,4096",
    "80,int4,split,1", "89,fp8,split,64", "75,dense,split,1",
)  # fmt: skip


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "tests.unit.kernels.triton.ahead_linear", *CASES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {line["case"]: line for line in lines if line["kernel"] != "_add_kernel"}


@pytest.mark.parametrize("case", CASES)
def test_a_tile_stays_in_registers_and_in_shared_memory(
    kernels: dict[str, dict[str, Any]], case: str
) -> None:
    assert kernels[case]["spilled_bytes"] == 0
    assert kernels[case]["shared_bytes"] <= kernels[case]["limit"]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "7"])
def test_tiles_are_multiplied_by_the_cards_matrix_instruction_and_loaded_ahead(
    kernels: dict[str, dict[str, Any]], case: str
) -> None:
    instructions = kernels[case]["instructions"]
    assert instructions["HGMMA" if case[0] == "9" else "HMMA"] >= 4
    assert instructions["LDGSTS"] >= 8


def test_few_and_many_tokens_use_the_same_instruction(kernels: dict[str, dict[str, Any]]) -> None:
    """Otherwise their bits could differ on a card; see docs/cuda.md."""
    for case in CASES:
        if case[0] == "9":
            assert "HMMA" not in kernels[case]["instructions"]


def test_decoded_codes_of_four_bits_do_not_pass_through_shared_memory(
    kernels: dict[str, dict[str, Any]],
) -> None:
    """Sixteen loads of words a block; stored are the output's change of layout and a counter.

    Codes that pass through as bfloat16 would be sixteen stores a block and more.
    """
    instructions = kernels["90,int4,split,1"]["instructions"]
    assert instructions["STS"] <= 8
    assert instructions["LDS"] <= 24
