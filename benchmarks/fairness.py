"""What a long prompt does to others: their latency between tokens, and short prompts behind it.

    python -m benchmarks.fairness [--budgets 128 512 2048] [--long 8192] [--streams 8]

For each `--max-num-batched-tokens`: running streams before,
while and after a long prompt is prefilled, against the bound, which is the time of one step of the
whole budget at the end of the long prompt (measured alone: the prompt's time less that of the
prompt without its last step); then the time to the first token of short prompts that arrive behind
a long one, and of long ones that short ones pass. Never asserts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass
from statistics import median

from benchmarks.serving import DUMMIES, Seen, Server, follow, in_ms, running_server, streams_to

from hearth.client.streaming import StreamPool

VOCABULARY = 3072
SHORT_TOKENS = 64
QUIET_S = 2.0


@dataclass(frozen=True)
class Sizes:
    """Of one run."""

    budget: int
    num_long: int
    num_streams: int
    num_rounds: int


def prompt(length: int) -> list[int]:
    """Random tokens: nothing of it is in a cache."""
    return [random.randrange(100, VOCABULARY) for _ in range(length)]


def body(length: int, max_tokens: int) -> dict[str, object]:
    """A completion of so many tokens from so many others."""
    return {
        "prompt": prompt(length),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "min_tokens": max_tokens,
    }


async def step_time(pool: StreamPool, sizes: Sizes) -> float:
    """Seconds of a step of the whole budget at the end of the long prompt, alone."""
    found: list[float] = []
    for _ in range(sizes.num_rounds):
        whole = await follow(pool, body(sizes.num_long, 1))
        shorter = await follow(pool, body(sizes.num_long - sizes.budget, 1))
        found.append(whole.ttft - shorter.ttft)
    return median(found)


async def long_beside_streams(pool: StreamPool, sizes: Sizes) -> None:
    """Prints the streams' latencies before, during and after."""
    watched = [Seen(time.perf_counter()) for _ in range(sizes.num_streams)]
    tasks = [asyncio.create_task(follow(pool, body(16, 6000), seen)) for seen in watched]
    # Polled: this is about seconds, and a callback for each stream would be more than it is worth.
    while not all(seen.times for seen in watched):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    phases: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    spans: list[tuple[float, float]] = []
    ttfts: list[float] = []
    for _ in range(sizes.num_rounds):
        await asyncio.sleep(QUIET_S)
        seen = await follow(pool, body(sizes.num_long, 1))
        spans.append((seen.started, seen.ended))
        ttfts.append(seen.ttft)
    await asyncio.sleep(QUIET_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for moment, gap in (gap for seen in watched for gap in seen.gaps()):
        if any(start < moment - gap and moment < end for start, end in spans):
            phases["during"].append(gap)
        elif begin < moment < spans[0][0]:
            phases["before"].append(gap)
        elif moment - gap > spans[-1][1]:
            phases["after"].append(gap)
    for name, gaps in phases.items():
        print(f"  ITL {name:7s} {in_ms(gaps)} ms ({len(gaps)} gaps)")
    print(f"  TTFT of the long prompt beside them: {median(ttfts):.2f} s")


async def short_behind_long(pool: StreamPool, sizes: Sizes) -> None:
    """Prints times to the first token: alone, and where both arrive together."""
    alone: list[float] = []
    behind: list[float] = []
    longs: list[float] = []
    long_alone = (await follow(pool, body(sizes.num_long, 1))).ttft
    for _ in range(sizes.num_rounds):
        alone.append((await follow(pool, body(SHORT_TOKENS, 1))).ttft)
        long = [asyncio.create_task(follow(pool, body(sizes.num_long, 1))) for _ in range(2)]
        await asyncio.sleep(0.05)
        short = [asyncio.create_task(follow(pool, body(SHORT_TOKENS, 1))) for _ in range(4)]
        behind += [seen.ttft for seen in await asyncio.gather(*short)]
        longs += [max(seen.ttft for seen in await asyncio.gather(*long))]
    print(f"  TTFT of {SHORT_TOKENS} tokens alone {1e3 * median(alone):.0f} ms", end="")
    print(f", four of them behind two long ones {in_ms(behind)} ms")
    print(f"  TTFT of a long one alone {long_alone:.2f} s, of the second of two ", end="")
    print(f"that four short ones pass {median(longs):.2f} s")


async def measure(server: Server, sizes: Sizes) -> None:
    """All figures of one server."""
    async with streams_to(server) as pool:
        bound = await step_time(pool, sizes)
        print(f"budget {sizes.budget}: a step takes {1e3 * bound:.1f} ms (the bound);", end="")
        print(" p50 / p99 / max:")
        await long_beside_streams(pool, sizes)
        await short_behind_long(pool, sizes)


def main() -> None:
    """Prints a paragraph a budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--size", choices=DUMMIES, default="100M", help="parameters, random ones")
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="of another version to compare")
    options = parser.parse_args()
    for budget in options.budgets:
        flags = ["--max-num-batched-tokens", str(budget), "--no-enable-prefix-caching"]
        flags += ["--kv-cache-memory-bytes", "2G", "--max-num-seqs", "16"]
        with running_server(*flags, changes=DUMMIES[options.size], python=options.python) as server:
            sizes = Sizes(budget, options.long, options.streams, options.rounds)
            asyncio.run(measure(server, sizes))


if __name__ == "__main__":
    main()
