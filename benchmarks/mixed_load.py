"""Mixed traffic for minutes or hours: memory, file handles, blocks, errors, equal answers.

    python -m benchmarks.mixed_load --minutes 60 [--rate 4] [--json FILE]

Requests of every kind arrive at random at a moderate rate: chats and completions, streamed and
whole, several choices, log-probabilities, penalties, stop strings, priorities, long prompts,
clients that leave, deadlines, bad requests, and now and then a burst that fills the queue. Those of
a kind whose answer is a function of its seed must get the same answer every time. Sampled every few
seconds: resident and proportional memory and handles of both processes, blocks in use. Prints
memory slopes with their 95 % confidence, what memory and handles are when nothing runs, before and
after, and errors by kind; the JSON file has all of it. The KV cache is filled block by block, so
that the engine grows for some minutes: the slope of the second half is the one to look at. The exit
code is 1 where an answer changed, something unexpected was said, or blocks or handles stay behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from benchmarks.serving import DUMMIES, Server, running_server
from benchmarks.trend import Slope, slope_of

SAMPLE_S = 5.0
IDLE_S = 2.0
NUM_SEEDS = 8  # answers of a kind that are told apart
BURST_CHANCE = 0.01
TEXT = "hearth serves models on hardware that people own one GPU or none at all"
WORDS = TEXT.split()
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

Body = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of request: its body by seed, and what may be answered."""

    path: str
    make: Callable[[int], Body]
    weight: float = 1.0
    statuses: tuple[int, ...] = (200,)
    is_stable: bool = True  # equal seeds, equal answers
    leaves: bool = False  # the client goes away in the middle


def _words(seed: int, count: int) -> str:
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(count))


def _chat(seed: int, **fields: Any) -> Body:
    messages = [{"role": "user", "content": _words(seed, 12)}]
    return {"messages": messages, "max_tokens": 32, "seed": seed, "temperature": 0.8, **fields}


def _completion(seed: int, **fields: Any) -> Body:
    return {"prompt": _words(seed, 10), "max_tokens": 24, "seed": seed, "temperature": 1, **fields}


PENALTIES: Body = {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2}
KINDS: dict[str, Kind] = {
    "chat": Kind(CHATS, lambda s: _chat(s, ignore_eos=True), 3),
    "chat, streamed": Kind(CHATS, lambda s: _chat(s, stream=True), 3),
    "chat, greedy": Kind(CHATS, lambda s: _chat(s, temperature=0)),
    "three choices": Kind(CHATS, lambda s: _chat(s, n=3)),
    "logprobs": Kind(CHATS, lambda s: _chat(s, logprobs=True, top_logprobs=3)),
    "penalties": Kind(CHATS, lambda s: _chat(s, ignore_eos=True, **PENALTIES)),
    "stop strings": Kind(COMPLETIONS, lambda s: _completion(s, stop=["e ", "own"], stream=True)),
    "completion": Kind(COMPLETIONS, lambda s: _completion(s, ignore_eos=True), 2),
    "two prompts": Kind(COMPLETIONS, lambda s: _completion(s, prompt=["a b", _words(s, 5)], n=2)),
    "long prompt": Kind(COMPLETIONS, lambda s: _completion(s, prompt=_words(s, 700))),
    "priority": Kind(COMPLETIONS, lambda s: _completion(s, priority=s % 3 - 1)),
    "client leaves": Kind(
        CHATS,
        lambda s: _chat(s, stream=True, max_tokens=400, ignore_eos=True),
        is_stable=False,
        leaves=True,
    ),
    "deadline": Kind(
        COMPLETIONS,
        lambda s: _completion(s, max_tokens=2000, ignore_eos=True, timeout=0.05 * (1 + s)),
        statuses=(504,),
        is_stable=False,
    ),
    "bad request": Kind(CHATS, lambda s: _chat(s, temperature=-1), statuses=(400,)),
    "too long": Kind(CHATS, lambda s: _chat(s, max_tokens=10**8), statuses=(400,)),
}


@dataclass
class Findings:
    """All that was seen."""

    answers: dict[tuple[str, int], str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, float]] = field(default_factory=list)
    idle: list[dict[str, float]] = field(default_factory=list)  # before and after


class Traffic:
    """Sends requests to a server and notes what comes."""

    def __init__(self, http: httpx.AsyncClient, findings: Findings) -> None:
        self._http = http
        self._found = findings

    async def send(self, name: str, seed: int) -> None:
        """One request of a kind, to its end or until its client leaves."""
        kind, found = KINDS[name], self._found
        began = time.perf_counter()
        try:
            status, text = await self._ask(kind, kind.make(seed))
        except httpx.HTTPError as error:
            found.problems[f"{name}: {type(error).__name__}: {error}"] += 1
            return
        if status == 429:
            found.counts["refused: the queue was full"] += 1
            return
        found.counts[f"{name}: {status}"] += 1
        found.latencies.setdefault(name, []).append(time.perf_counter() - began)
        if status not in kind.statuses:
            found.problems[f"{name}: status {status}: {text[:200]}"] += 1
        elif kind.is_stable and found.answers.setdefault((name, seed), text) != text:
            found.problems[f"{name}: another answer for the same seed"] += 1

    async def _ask(self, kind: Kind, body: Body) -> tuple[int, str]:
        """Status, and what of the answer does not depend on the time."""
        if not body.get("stream"):
            response = await self._http.post(kind.path, json=body)
            answer = response.json()
            stable = {key: answer.get(key) for key in ("error", "choices")}
            return response.status_code, json.dumps(stable, sort_keys=True)
        pieces: list[str] = []
        async with self._http.stream("POST", kind.path, json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    pieces.append(_text_of(json.loads(line.removeprefix("data: "))))
                if kind.leaves and len(pieces) > random.randrange(1, 30):
                    return response.status_code, ""
        return response.status_code, "".join(pieces)

    async def run(self, seconds: float, rate: float, burst: int) -> None:
        """Poisson arrivals until the time is over; ends when the last one has its answer."""
        names = list(KINDS)
        weights = [kind.weight for kind in KINDS.values()]
        tasks: set[asyncio.Task[None]] = set()
        due = began = time.perf_counter()
        while due < began + seconds:
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            count = burst if random.random() < BURST_CHANCE else 1
            for name in random.choices(names, weights, k=count):
                task = asyncio.create_task(self.send(name, random.randrange(NUM_SEEDS)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


def _text_of(event: dict[str, Any]) -> str:
    """The text of an event, its finish reason, or the error."""
    if "error" in event:
        return str(event["error"])
    choices = event["choices"]
    texts = (c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)
    return "".join(f"{text}{c['finish_reason'] or ''}" for text, c in zip(texts, choices))


def sample(server: Server) -> dict[str, float]:
    """Memory in MiB, handles and threads of both processes, now."""
    found: dict[str, float] = {"time": time.time()}
    for name, pid in zip(("front end", "engine"), server.pids):
        process = Path(f"/proc/{pid}")
        rollup = (process / "smaps_rollup").read_text(encoding="ascii")
        for line in rollup.splitlines():
            key, _, rest = line.partition(":")
            if key in ("Rss", "Pss", "Private_Dirty"):
                found[f"{name} {key.lower()} MiB"] = int(rest.split()[0]) / 1024
        found[f"{name} handles"] = len(list((process / "fd").iterdir()))
        found[f"{name} threads"] = len(list((process / "task").iterdir()))
    return found


async def watch(server: Server, http: httpx.AsyncClient, findings: Findings) -> None:
    """Samples until it is cancelled."""
    while True:
        found = sample(server)
        with contextlib.suppress(httpx.HTTPError):
            health = (await http.get("/health")).json()
            engine = health["engine"] or {}
            found["running"], found["waiting"] = health["running"], health["waiting"] or 0
            found["blocks used"] = engine.get("kv_blocks_used", float("nan"))
            found["preemptions"] = engine.get("preemptions", float("nan"))
        findings.samples.append(found)
        await asyncio.sleep(SAMPLE_S)


async def soak(server: Server, options: argparse.Namespace) -> Findings:
    """The whole run; a first part, which is not sampled, lets heaps and caches reach their size."""
    findings = Findings()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)

    async def phase(minutes: float, *, is_watched: bool) -> None:
        # A client for each phase: connections that it would keep count as the server's handles.
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=limits, trust_env=False
        ) as http:
            watcher = asyncio.create_task(watch(server, http, findings)) if is_watched else None
            await Traffic(http, findings).run(60 * minutes, options.rate, options.burst)
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
        await asyncio.sleep(IDLE_S)
        findings.idle.append(sample(server))

    await phase(options.warm_minutes, is_watched=False)
    await phase(options.minutes, is_watched=True)
    used = server.health()["engine"]["kv_blocks_used"]
    if used:
        findings.problems[f"{used} blocks are in use when nothing runs"] += 1
    for name in ("front end handles", "engine handles"):
        if findings.idle[1][name] > findings.idle[0][name]:
            findings.problems[f"{name}: more at the end than at the beginning"] += 1
    if "Traceback" in server.log.read_text(encoding="utf-8"):
        findings.problems["the server's log has a trace"] += 1
    return findings


def slopes(samples: list[dict[str, float]]) -> dict[str, Slope]:
    """MiB an hour of every kind of memory."""
    names = [name for name in samples[0] if name.endswith("MiB")]
    hours = [found["time"] / 3600 for found in samples]
    return {name: slope_of(hours, [found[name] for found in samples]) for name in names}


def report(findings: Findings) -> dict[str, Any]:
    """Prints the summary; returns everything for the file."""
    found = slopes(findings.samples)
    later = slopes(findings.samples[len(findings.samples) // 2 :])
    for name in findings.idle[0]:
        if name != "time":
            before, after = (idle[name] for idle in findings.idle)
            most = max(one[name] for one in findings.samples)
            print(f"{name:28s} idle {before:8.1f} → {after:8.1f}, at most {most:8.1f}", end="")
            if slope := found.get(name):
                half = later[name]
                print(f", {slope.per_unit:+.2f} ± {slope.margin:.2f} MiB an hour", end="")
                print(f" (second half {half.per_unit:+.2f} ± {half.margin:.2f})", end="")
            print()
    for name, count in sorted(findings.counts.items()):
        print(f"{count:8d} {name}")
    for name, count in findings.problems.most_common():
        print(f"PROBLEM {count} × {name}")
    print(f"{len(findings.answers)} different requests had one answer each, but for the problems")
    return {
        "mib_per_hour": {n: {"slope": s.per_unit, "margin": s.margin} for n, s in found.items()},
        "mib_per_hour_second_half": {
            n: {"slope": s.per_unit, "margin": s.margin} for n, s in later.items()
        },
        "idle": findings.idle,
        "counts": dict(findings.counts),
        "problems": dict(findings.problems),
        "median_latency_s": {n: sorted(v)[len(v) // 2] for n, v in findings.latencies.items()},
        "samples": findings.samples,
    }


def main() -> None:
    """Runs it; exits with 1 where there is a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--warm-minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--burst", type=int, default=60, help="requests at once, now and then")
    parser.add_argument("--size", choices=[*DUMMIES, "built-in"], default="built-in")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    flags = ["--max-num-seqs", "16", "--max-queued-requests", "24", "--log-level", "error"]
    flags += ["--kv-cache-memory-bytes", "24M"]  # small: blocks run out now and then
    with running_server(*flags, changes=DUMMIES.get(options.size)) as server:
        findings = asyncio.run(soak(server, options))
    body = report(findings)
    if options.json is not None:
        options.json.write_text(json.dumps(body, indent=1), encoding="utf-8")
    sys.exit(1 if findings.problems else 0)


if __name__ == "__main__":
    main()
