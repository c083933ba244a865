"""The plan held against a server: memory at its peak, tokens a second, time to the first token.

    python -m benchmarks.plan_check MODEL,SCHEME,CONTEXT,SEQUENCES [MODEL,… …] [--measure]
                                    [--attempts N] [-- FLAGS OF hearth serve]

For each case `hearth plan --json` predicts, then a server of exactly that load is started
(`--max-num-seqs`, `--kv-cache-memory-bytes` as planned) and all of its KV cache is filled: a
prompt alone, then as many as sequences at a time, tokens until the context is full. Memory: the
peak of both processes against the plan without what was not used (kept images, pixels). Prefix
cache and speculation are off, prompts distinct. `--measure`: the speeds anew before and after each
case; their mean predicts, and a case between whose two measurements the machine itself changed by a
tenth is marked, and done again, up to N times in all. Never asserts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

NEW_TOKENS = 48
UNSTEADY = 0.1
UNUSED = {"images", "pixels", "encoder"}  # of a load without images
HEARTH = (sys.executable, "-m", "hearth.cli")


@dataclass(frozen=True)
class Case:
    """One load of a model."""

    model: str
    scheme: str
    context: int
    sequences: int

    @property
    def prompt_tokens(self) -> int:
        """So many that the context is full at the end."""
        return self.context - NEW_TOKENS - 1


@dataclass(frozen=True)
class Streamed:
    """When the tokens of one answer came."""

    first_s: float
    gaps_s: tuple[float, ...]


class Served:
    """A running server."""

    def __init__(self, case: Case, kv_bytes: int, flags: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "--quantize": case.scheme,
            "--max-model-len": case.context,
            "--max-num-seqs": case.sequences,
            "--kv-cache-memory-bytes": kv_bytes,
            "--speculative": "off",
            "--port": port,
            "--log-level": "error",
        }
        pairs = [str(part) for pair in settings.items() for part in pair]
        command = [*HEARTH, "serve", case.model, *pairs, "--no-enable-prefix-caching", *flags]
        self._popen = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        for _ in range(6000):
            if self._popen.poll() is not None:
                raise SystemExit(f"the server ended with {self._popen.returncode}")
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def stream(self, prompt: list[int]) -> Streamed:
        """One answer of NEW_TOKENS tokens."""
        body = {
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": False},
        }
        begin = time.perf_counter()
        times: list[float] = []
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=3600) as answer:
            answer.raise_for_status()
            times.extend(
                time.perf_counter() for line in answer.iter_lines() if line.startswith("data: {")
            )
        gaps = tuple(b - a for a, b in itertools.pairwise(times))
        return Streamed(times[0] - begin, gaps[:-1])

    def peak_bytes(self) -> int:
        """Of both processes; mapped weights count."""
        children = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children").read_text()
        total = 0
        for pid in (str(self._popen.pid), *children.split()):
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            total += int(text.split("VmHWM:", 1)[1].split()[0]) * 1024
        return total

    def close(self) -> None:
        """Ends it."""
        self._popen.send_signal(signal.SIGINT)
        self._popen.wait(60)


def planned(case: Case, measure: bool) -> dict[str, Any]:
    """The case's precision in `hearth plan --json`."""
    command = [
        *(*HEARTH, "plan", case.model, "--json"),
        *("--max-model-len", str(case.context), "--concurrency", str(case.sequences)),
        *("--prompt-tokens", str(case.prompt_tokens)),
        *(["--measure"] if measure else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    report = json.loads(done.stdout)
    found: dict[str, Any] = next(o for o in report["outlooks"] if o["scheme"] == case.scheme)
    return found


def check(case: Case, measure: bool, flags: list[str]) -> bool:
    """Some lines; whether the machine stood still meanwhile, as far as was measured."""
    plan = planned(case, measure)
    used = sum(i["num_bytes"] for i in plan["items"] if i["name"] not in UNUSED)
    choose = random.Random(1)

    def prompt() -> list[int]:
        return [choose.randrange(16, 1000) for _ in range(case.prompt_tokens)]

    served = Served(case, plan["kv_bytes"], flags)
    try:
        alone = served.stream(prompt())
        prompts = [prompt() for _ in range(case.sequences)]
        with ThreadPoolExecutor(case.sequences) as pool:
            together = list(pool.map(served.stream, prompts))
        peak = served.peak_bytes()
    finally:
        served.close()
    times = plan["times"] or {}
    mark = ""
    if measure:
        times, mark = _between(times, planned(case, measure)["times"])
    token_s = statistics.median(alone.gaps_s)
    # The steps in which all take part are those of the stream that came last.
    last = max(together, key=lambda s: s.first_s)
    rate = case.sequences / statistics.median(last.gaps_s)
    rows = (
        ("memory, GiB", (used + plan["kv_bytes"]) / 2**30, peak / 2**30),
        ("first token, s", times.get("first_token_s"), alone.first_s),
        ("tokens/s, one", 1 / times["token_s"] if times else None, 1 / token_s),
        ("tokens/s, all", times.get("tokens_s"), rate),
    )
    name = f"{Path(case.model).name} {case.scheme} {case.context} × {case.sequences}"
    for what, predicted, measured in rows:
        off = "" if predicted is None else f"{predicted / measured - 1:+.1%}"
        shown = "?" if predicted is None else f"{predicted:.2f}"
        print(f"{name:40} {what:16} {shown:>9} {measured:9.2f} {off:>8}{mark}", flush=True)
    return not mark


def _between(before: dict[str, float], after: dict[str, float]) -> tuple[dict[str, float], str]:
    """The means, and a mark where the two are a tenth apart."""
    names = ("first_token_s", "token_s", "tokens_s")
    apart = max(abs(before[name] / after[name] - 1) for name in names)
    means = {name: (before[name] + after[name]) / 2 for name in names}
    return means, f"  (speeds changed by {apart:.0%})" if apart > UNSTEADY else ""


def main() -> None:
    """Checks each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--attempts", type=int, default=1)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    print(f"{'case':40} {'':16} {'predicted':>9} {'measured':>9}")
    for text in options.cases:
        model, scheme, context, sequences = text.split(",")
        case = Case(model, scheme, int(context), int(sequences))
        for _ in range(options.attempts):
            if check(case, options.measure, flags.split()):
                break


if __name__ == "__main__":
    main()
