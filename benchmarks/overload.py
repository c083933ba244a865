"""Five times more requests than a server can answer: goodput, and how fast the rest is refused.

    python -m benchmarks.overload [--size 14M] [--factor 5] [--seconds 10] [--rounds 3]

Peak: as many clients as there are places, each sending its next request when one has ended. Over-
load: requests arrive at random at `factor` times the peak's rate, whether the server keeps up or
not; refused ones are not sent again. Both alternate on one server. The prompts have the same
lengths and nothing in common. Goodput counts tokens of completed requests. Never asserts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import uvloop
from benchmarks.serving import DUMMIES, Seen, Server, follow, in_ms, running_server, streams_to

from hearth.client.streaming import StreamPool

PROMPT_TOKENS = 48
ANSWER_TOKENS = 48
NUM_PLACES = 16
NUM_QUEUED = 48


@dataclass
class Tally:
    """What came of the requests of one phase."""

    started: float = field(default_factory=time.perf_counter)
    completed: list[Seen] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)

    def note(self, seen: Seen) -> None:
        """Takes one request in."""
        if not seen.error:
            self.completed.append(seen)
        elif seen.status == 429:
            self.refusals.append(time.perf_counter() - seen.started)
        else:
            self.problems[seen.error] += 1

    def rate(self, until: float) -> float:
        """Tokens a second of requests that were completed, from a second after the start on.

        By the times of their texts, so that an answer at the phase's edge counts for its part.
        """
        begin = self.started + 1
        num_tokens = 0.0
        for seen in self.completed:
            inside = sum(begin <= moment <= until for moment in seen.times)
            num_tokens += seen.num_tokens * inside / max(1, len(seen.times))
        return num_tokens / (until - begin)


def body() -> dict[str, object]:
    """One request; nothing of its prompt is in a cache."""
    return {
        "prompt": [random.randrange(100, 3000) for _ in range(PROMPT_TOKENS)],
        "max_tokens": ANSWER_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }


async def closed_loop(pool: StreamPool, seconds: float) -> Tally:
    """As many clients as there are places, running and queued."""
    tally = Tally()
    end = tally.started + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            tally.note(await follow(pool, body()))

    await asyncio.gather(*(client() for _ in range(NUM_PLACES + NUM_QUEUED)))
    return tally


async def open_loop(pool: StreamPool, seconds: float, rate: float) -> Tally:
    """Poisson arrivals at `rate` a second."""
    tally = Tally()
    due = tally.started
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        tally.note(await follow(pool, body()))

    while due < tally.started + seconds:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return tally


async def measure(server: Server, options: argparse.Namespace) -> None:
    """Alternates peak and overload; prints a line each and the medians."""
    ratios: list[float] = []
    refusals: list[float] = []
    async with streams_to(server) as pool:
        await closed_loop(pool, 2.0)
        for _ in range(options.rounds):
            peak = await closed_loop(pool, options.seconds)
            peak_rate = peak.rate(peak.started + options.seconds)
            print(f"peak      {peak_rate:8.0f} tokens/s, TTFT", end=" ")
            print(in_ms([seen.ttft for seen in peak.completed]), "ms", dict(peak.problems))
            offered = options.factor * peak_rate / ANSWER_TOKENS
            cpu = time.process_time()
            over = await open_loop(pool, options.seconds, offered)
            cpu = (time.process_time() - cpu) / (time.perf_counter() - over.started)
            good = over.rate(over.started + options.seconds)
            print(f"overload  {good:8.0f} tokens/s at {offered:.0f} requests/s;", end=" ")
            print(f"{len(over.completed)} completed, {len(over.refusals)} refused in", end=" ")
            print(in_ms(over.refusals), "ms (p50 / p99 / max);", end=" ")
            print(f"client {cpu:.0%} of a core", dict(over.problems))
            ratios.append(good / peak_rate)
            refusals += over.refusals
    print(f"goodput at {options.factor:g} times: {median(ratios):.0%} of peak", end="")
    print(f" ({min(ratios):.0%} to {max(ratios):.0%}); refused in {in_ms(refusals)} ms")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--size", choices=[*DUMMIES, "built-in"], default="14M")
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="of another version to compare")
    options = parser.parse_args()
    flags = ["--max-num-seqs", str(NUM_PLACES), "--max-queued-requests", str(NUM_QUEUED)]
    flags += ["--kv-cache-memory-bytes", "512M"]
    changes = DUMMIES.get(options.size)
    with (
        running_server(*flags, changes=changes, python=options.python) as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(measure(server, options))


if __name__ == "__main__":
    main()
