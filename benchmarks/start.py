"""From the start of the process to the first token, and where the time goes.

    python benchmarks/start.py MODEL [--runs 3] [--json FILE] [-- FLAGS OF hearth serve]

Each round starts a server in every state, one after the other, so that all of them see the same
machine; medians over the rounds. A request waits from the beginning (the port is bound first).

    packing        nothing is cached by hearth, the model's files are in the page cache
    packing, cold  … and they are not: read from disk
    writing        as packing, and the packed weights are kept for the next start
    mapped         packed weights are found, in the page cache
    mapped, cold   … and they are not

Cold drops the pages of the weights only (posix_fadvise); Python's own files stay warm. The phases
are those of the server's banner; "first answer" lies between the banner and the first token. The
limit that no start can beat is shown for the cold states: reading as many bytes from this disk.
Never asserts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

STATES = ("packing", "packing, cold", "writing", "mapped", "mapped, cold")
TIMEOUT_S = 600.0
_PHASE = re.compile(r"([A-Za-z ]+?) (\d+\.\d+)")


@dataclass
class Start:
    """One start. Times in seconds."""

    first_token_s: float
    ready_s: float
    cpu_s: float  # of both processes, up to their end
    weight_cache: str  # what the banner says of it
    phases_s: dict[str, float] = field(default_factory=dict)
    engine_s: dict[str, float] = field(default_factory=dict)

    @property
    def first_answer_s(self) -> float:
        """From the banner to the first token."""
        return max(0.0, self.first_token_s - self.ready_s)


def drop_pages(paths: Sequence[Path]) -> None:
    """Takes files out of the page cache; what is dirty or mapped stays."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_through(paths: Sequence[Path]) -> float:
    """Reads files to their end; returns the seconds."""
    begin = time.perf_counter()
    buffer = bytearray(8 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def first_token(port: int, popen: subprocess.Popen[str]) -> float:
    """Waits for the first token of a streamed answer; the time on the monotonic clock."""
    body = {"prompt": "Once upon a time", "max_tokens": 1, "stream": True, "temperature": 0}
    url = f"http://127.0.0.1:{port}/v1/completions"
    while popen.poll() is None:
        try:
            with httpx.stream("POST", url, json=body, timeout=TIMEOUT_S) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        return time.monotonic()
        except httpx.ConnectError:
            time.sleep(0.002)
    raise SystemExit("the server ended before its first token")


def phases_of(text: str) -> dict[str, float]:
    """`python 0.12 + HTTP stack 0.5` as numbers."""
    return {name.strip(): float(seconds) for name, seconds in _PHASE.findall(text)}


def start(model: Path, flags: Sequence[str], done: Callable[[], bool]) -> Start:
    """Starts a server, waits for its first token and for `done`, ends it."""
    port = free_port()
    command = [sys.executable, "-m", "hearth.cli", "serve", str(model), "--port", str(port)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        begin = time.monotonic()
        popen = subprocess.Popen(
            [*command, *flags], stdout=out, stderr=subprocess.STDOUT, text=True
        )
        try:
            seconds = first_token(port, popen) - begin
            while not done():
                time.sleep(0.1)
        finally:
            popen.send_signal(signal.SIGINT)
            _, status, usage = os.wait4(popen.pid, 0)
            popen.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        banner = out.read()
    line = re.search(r"ready in ([\d.]+) s = (.*); the engine meanwhile: (.*)", banner)
    cache = re.search(r"weight cache: (\w+)", banner)
    if line is None or cache is None:
        raise SystemExit(f"the server's banner has no line of times:\n{banner}")
    return Start(
        seconds,
        float(line[1]),
        usage.ru_utime + usage.ru_stime,
        cache[1],
        phases_of(line[2]),
        phases_of(line[3]),
    )


class Bench:
    """The states of one model, with a cache directory of their own."""

    def __init__(self, model: Path, cache: Path, flags: Sequence[str]) -> None:
        self._model, self._cache, self._flags = model, cache, list(flags)
        self._sources = sorted(model.glob("*.safetensors"))

    def run(self, state: str) -> Start:
        """Prepares a state and starts a server in it."""
        kept = ["--weight-cache-dir", str(self._cache)]
        if state.startswith("packing"):
            kept = ["--weight-cache-bytes", "0"]
        elif state == "writing":
            for path in self._cache.iterdir():
                path.unlink()
        files = [*self._cache.iterdir()] if state.startswith("mapped") else self._sources
        (drop_pages if state.endswith("cold") else read_through)(files)
        found = start(self._model, [*kept, *self._flags], self._is_kept(state))
        expected = {"p": "off", "w": "written", "m": "mapped"}[state[0]]
        if found.weight_cache != expected:
            raise SystemExit(f"{state}: the weight cache is {found.weight_cache}, not {expected}")
        return found

    def _is_kept(self, state: str) -> Callable[[], bool]:
        """Whether the file is complete, where one is written: the next state needs it."""
        return lambda: state != "writing" or any(self._cache.glob("*.packed"))

    def disk_limit_s(self) -> float:
        """Reading the sources from disk, nothing else."""
        drop_pages(self._sources)
        return read_through(self._sources)


def medians(starts: Sequence[Start], get: Callable[[Start], dict[str, float]]) -> dict[str, float]:
    """Of each phase."""
    names = get(starts[0])
    return {n: round(statistics.median(get(s).get(n, 0.0) for s in starts), 3) for n in names}


@dataclass
class Summary:
    """What is reported of one state: medians, and the range of the whole."""

    first_token_s: float
    fastest_s: float
    slowest_s: float
    cpu_s: float
    front_end_s: dict[str, float]
    engine_s: dict[str, float]
    first_answer_s: float


def summary(starts: Sequence[Start]) -> Summary:
    """Over the rounds of one state."""
    firsts = sorted(s.first_token_s for s in starts)
    return Summary(
        first_token_s=round(statistics.median(firsts), 3),
        fastest_s=round(firsts[0], 3),
        slowest_s=round(firsts[-1], 3),
        cpu_s=round(statistics.median(s.cpu_s for s in starts), 3),
        front_end_s=medians(starts, lambda s: s.phases_s),
        engine_s=medians(starts, lambda s: s.engine_s),
        first_answer_s=round(statistics.median(s.first_answer_s for s in starts), 3),
    )


def show(state: str, found: Summary) -> None:
    """A state on three lines."""
    print(
        f"{state:14s} first token {found.first_token_s:6.2f} s  "
        f"({found.fastest_s:.2f} to {found.slowest_s:.2f}), processor {found.cpu_s:.2f} s"
    )
    own, engine = (
        " + ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        for phases in (found.front_end_s, found.engine_s)
    )
    print(f"{'':14s} front end {own} + first answer {found.first_answer_s:.2f}")
    print(f"{'':14s} engine    {engine}")


def main() -> None:
    """Prints a table; writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache-dir", type=Path, help="a local disk; default: a temporary one")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    rounds: dict[str, list[Start]] = {state: [] for state in STATES}
    with tempfile.TemporaryDirectory(dir=options.cache_dir) as cache:
        bench = Bench(options.model, Path(cache), words[end + 1 :])
        for _ in range(options.runs):
            for state in STATES:
                rounds[state].append(bench.run(state))
        limit_s = bench.disk_limit_s()
    results = {state: summary(starts) for state, starts in rounds.items()}
    for state, found in results.items():
        show(state, found)
    print(f"reading the model's files from this disk alone: {limit_s:.2f} s")
    if options.json is not None:
        states = {state: asdict(found) for state, found in results.items()}
        report = {"model": options.model.name, "disk_limit_s": round(limit_s, 3), "states": states}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
