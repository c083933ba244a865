"""The ceilings of this machine, measured in the same run as what is held against them.

Compiles `native/ceilings.cpp` for this processor and keeps it running: `measure()` takes some
0.4 s on a quiet machine, and an idle instance takes no processor time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "native" / "ceilings.cpp"
DEFAULT_CACHE_DIR = Path("~/.cache/hearth-bench").expanduser()
FLAGS = ("-O3", "-std=c++20", "-march=native", "-pthread")


@dataclass(frozen=True)
class Ops:
    """Operations by what they need; a multiplication and an addition are two."""

    int8: float = 0.0
    fp32: float = 0.0
    pairs: float = 0.0  # bfloat16 where the processor multiplies pairs, else float32


@dataclass(frozen=True)
class Ceiling:
    """Rates of all threads together; 0 where the processor has no such instruction."""

    read_gb_s: float  # the best pass
    read_gb_s_median: float  # how quiet the machine was
    int8_gop_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float = 0.0  # products of pairs

    @property
    def pair_gflop_s(self) -> float:
        """Of what may be computed in pairs of bfloat16."""
        return self.bf16_gflop_s or self.fp32_gflop_s

    def floor_s(self, num_bytes: float, ops: Ops | None = None) -> float:
        """The least time: memory is read while the processor computes."""
        return max(num_bytes / self.read_gb_s / 1e9, self.compute_s(ops or Ops()))

    def compute_s(self, ops: Ops) -> float:
        """The least time of the arithmetic alone; 0 of an unknown peak."""
        return sum(
            1e-9 * count / rate
            for count, rate in (
                (ops.int8, self.int8_gop_s),
                (ops.fp32, self.fp32_gflop_s),
                (ops.pairs, self.pair_gflop_s),
            )
            if rate
        )


class Ceilings:
    """A running instance of the measuring program."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        """See `running_ceilings`."""
        self._popen = popen
        self.taken: list[Ceiling] = []

    def measure(self) -> Ceiling:
        """Measures now. Raises OSError when the program has died."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise OSError(f"the ceilings program ended with code {self._popen.wait()}")
        found = json.loads(line)
        ceiling = Ceiling(
            found["read_gb_s"],
            found["read_gb_s_median"],
            found.get("int8_gop_s", 0.0),
            found.get("fp32_gflop_s", 0.0),
            found.get("bf16_gflop_s", 0.0),
        )
        self.taken.append(ceiling)
        return ceiling


def mean_of(ceilings: Sequence[Ceiling]) -> Ceiling:
    """What holds between measurements: the mean of those around."""
    count = len(ceilings)
    return Ceiling(
        sum(c.read_gb_s for c in ceilings) / count,
        sum(c.read_gb_s_median for c in ceilings) / count,
        sum(c.int8_gop_s for c in ceilings) / count,
        sum(c.fp32_gflop_s for c in ceilings) / count,
        sum(c.bf16_gflop_s for c in ceilings) / count,
    )


def compiled(cache_dir: Path) -> Path:
    """The program, compiled anew when its source is newer. Raises SystemExit without a compiler."""
    binary = cache_dir / "ceilings"
    if binary.exists() and binary.stat().st_mtime > SOURCE.stat().st_mtime:
        return binary
    cache_dir.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_suffix(f".{os.getpid()}")
    command = [os.environ.get("CXX", "g++"), *FLAGS, str(SOURCE), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot compile {SOURCE.name}: {error}") from error
    fresh.replace(binary)
    return binary


@contextlib.contextmanager
def running_ceilings(threads: int, cache_dir: Path = DEFAULT_CACHE_DIR) -> Iterator[Ceilings]:
    """An instance for the time of a run."""
    popen = subprocess.Popen(
        [str(compiled(cache_dir)), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Ceilings(popen)
    finally:
        popen.communicate()
