"""Copies to cards are timed and cleaned up behind, with a library that stands for the driver's.

That a real driver does the same is to be shown on a machine with a card: docs/gpu-todo.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hearth.host.gpu_copy import NUM_COPIES, GpuCopies, measure_gpu_copies

SOURCE = Path(__file__).resolve().parents[2] / "native" / "cuda_stand_in.c"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
# In a process of its own: what was not given back is counted when the library is unloaded.
RUN = """
import sys, msgspec
from hearth.host import gpu_copy
gpu_copy.COPY_BYTES = 1 << 20
sys.stdout.buffer.write(msgspec.json.encode(gpu_copy.measure_gpu_copies(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler to make the stand-in of the driver's library with")
    path = tmp_path_factory.mktemp("cuda") / "libcuda.so"
    command = [
        COMPILER,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        str(SOURCE),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    return path


@dataclass(frozen=True)
class Seen:
    found: GpuCopies
    held: int  # allocations
    contexts: int
    depth: int  # of the stack of contexts
    to_card: int
    from_card: int


def run(library: Path, tmp_path: Path, **environment: str) -> Seen:
    import msgspec

    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(library)],
        capture_output=True,
        check=True,
        env={**os.environ, "STAND_IN_LOG": str(log), **environment},
    )
    found = msgspec.convert(json.loads(done.stdout), GpuCopies)
    return Seen(found, *map(int, log.read_text().split()))


def test_every_card_is_copied_to_and_from_and_left_as_it_was(library: Path, tmp_path: Path) -> None:
    seen = run(library, tmp_path)
    assert (seen.held, seen.contexts, seen.depth) == (0, 0, 0)
    assert [card.name for card in seen.found.cards] == ["Card 0", "Card 1"]
    for card in seen.found.cards:
        assert card.why == ""
        for samples in (card.to_gpu_bytes_s, card.from_gpu_bytes_s):
            assert samples is not None
            assert samples.count == NUM_COPIES
            assert 1e8 < samples.least <= samples.median <= samples.most < 1e13
    # One copy more, each way of each card, is not counted.
    assert seen.to_card == seen.from_card == 2 * (NUM_COPIES + 1)


@pytest.mark.parametrize(
    "function",
    [
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemHostAlloc",
        "cuMemAlloc_v2",
        "cuMemcpyHtoD_v2",
        "cuMemcpyDtoH_v2",
    ],
)
def test_what_the_driver_refuses_is_said_and_nothing_stays_behind(
    library: Path, tmp_path: Path, function: str
) -> None:
    seen = run(library, tmp_path, STAND_IN_FAILS=function)
    assert (seen.held, seen.contexts, seen.depth) == (0, 0, 0)
    assert len(seen.found.cards) == 2
    for card in seen.found.cards:
        assert card.to_gpu_bytes_s is None
        assert card.why == f"not measured: {function}: out of memory (error 2)"


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_that_does_not_start_is_said(library: Path, tmp_path: Path, function: str) -> None:
    found = run(library, tmp_path, STAND_IN_FAILS=function).found
    assert found == GpuCopies((), f"not measured: {function}: out of memory (error 2)")


def test_a_driver_without_cards_is_said(library: Path, tmp_path: Path) -> None:
    found = run(library, tmp_path, STAND_IN_CARDS="0").found
    assert found == GpuCopies((), "not measured: the driver shows no card")


def test_a_missing_library_and_one_without_the_functions_are_said() -> None:
    missing = measure_gpu_copies("libcuda-that-is-not-there.so.1")
    assert missing.cards == ()
    assert missing.why.startswith("not measured: libcuda-that-is-not-there.so.1: cannot open")
    other = measure_gpu_copies("libc.so.6")
    assert other.why.startswith("not measured: ")
    assert "cuInit" in other.why
