"""What Triton and ptxas make of attention and rope for cards that are not here: read, not run.

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
# capability, kernel, heads, kv heads, head_dim, type of the cache
CASES = (
    "90,rows,32,2,128,bfloat16", "90,decode,32,2,128,bfloat16", "90,decode,32,8,128,int8",
    "90,rows,32,2,128,fp8", "90,image,12,12,128,bfloat16", "90,image,16,16,80,bfloat16",
    "90,rope,32,2,128,bfloat16", "90,rope,32,2,128,fp8",
    "86,rows,32,8,128,bfloat16", "86,decode,32,8,128,int8", "86,rows,8,4,256,bfloat16",
    "75,rows,32,2,128,float16", "75,decode,32,2,128,int8",
)  # fmt: skip
# Bytes a thread: less than a few registers around a loop cost nothing.
SPILLED = 48


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "tests.unit.kernels.triton.ahead_attention", *CASES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {line["case"]: line for line in lines if line["kernel"] != "merge_kernel"}


@pytest.mark.parametrize("case", CASES)
def test_a_program_has_room_in_shared_memory(kernels: dict[str, dict[str, Any]], case: str) -> None:
    assert kernels[case]["shared_bytes"] <= kernels[case]["limit"]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "7"])
def test_tiles_stay_in_registers(kernels: dict[str, dict[str, Any]], case: str) -> None:
    assert kernels[case]["spilled_bytes"] <= SPILLED


def test_one_row_and_many_are_multiplied_by_the_same_instruction(
    kernels: dict[str, dict[str, Any]],
) -> None:
    """Otherwise their bits could differ on a card; see docs/cuda.md."""
    for case in CASES:
        capability, kernel = case.split(",")[:2]
        if kernel == "rope" or capability == "75":
            continue
        found = kernels[case]["instructions"]
        if capability == "90":
            assert found["HGMMA"] >= 8
            assert "HMMA" not in found
        else:
            assert found["HMMA"] >= 32


def test_products_and_sums_are_not_fused(kernels: dict[str, dict[str, Any]]) -> None:
    """One kernel might be fused, another not."""
    for case in CASES:
        if case.split(",")[1] in ("rows", "decode", "image") and case[0] != "7":
            instructions = kernels[case]["instructions"]
            assert instructions.get("FFMA", 0) <= 64, instructions
