"""64 streaming clients at once on the built-in model, the KV cache too small for all of them.

Some clients leave in the middle. Every answer that is completed equals the answer the same request
gets alone; afterwards no block, no file handle and no memory is left behind. The short form runs in
CI, the long one (60 s) in `make test-long`; both print their figures.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests.integration.server import Server

NUM_CLIENTS = 64
LEAVE_CHANCE = 0.15
KV_BYTES = "3M"  # 64 blocks of 32 tokens: some 15 of these requests fit at once
ARGUMENTS = ("--max-num-seqs", "64", "--max-model-len", "1024", "--kv-cache-memory-bytes", KV_BYTES)
ALLOWED_GROWTH_BYTES = 24 << 20
PREFIXES = ("", "You are a helpful assistant for people who serve models. " * 4)
QUESTIONS = (
    "What is hearth?",
    "What is 7 + 5?",
    "默认端口是多少？",
    "Tell me about the KV cache 🙂",
)


PENALTIES = {"frequency_penalty": 0.8, "presence_penalty": 0.5, "repetition_penalty": 1.3}


@dataclass
class Tally:
    """What the clients saw."""

    num_completed: int = 0
    num_left: int = 0
    num_tokens: int = 0
    problems: list[str] = field(default_factory=list)


def request_body(kind: int) -> dict[str, object]:
    """One of 24 requests: greedy and sampled, short and long, with and without a shared prefix.

    Every fifth is penalized: its answer depends on counts that a preemption must not change.
    """
    system = PREFIXES[kind % 2]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": QUESTIONS[kind % 4] * (1 + kind % 3)})
    return {
        "messages": messages,
        "temperature": (0, 1.0, 1.8)[kind % 3],
        "seed": kind,
        "max_tokens": 16 + 12 * (kind % 9),
        "ignore_eos": True,
        **(PENALTIES if kind % 5 == 0 else {}),
    }


NUM_KINDS = 24


async def streamed_text(
    http: httpx.AsyncClient, body: dict[str, object]
) -> AsyncIterator[str | None]:
    """Pieces of content, then None after a regular end."""
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                yield None
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""


async def whole_text(http: httpx.AsyncClient, body: dict[str, object]) -> str:
    return "".join([piece async for piece in streamed_text(http, body) if piece])


async def run_client(
    http: httpx.AsyncClient, solo: list[str], number: int, end: float, tally: Tally
) -> None:
    """One request after the other until the time is over; sometimes leaves in the middle."""
    choose = random.Random(number)
    clock = asyncio.get_running_loop().time
    while clock() < end and not tally.problems:
        kind = choose.randrange(NUM_KINDS)
        leave_after = choose.randrange(1, 20) if choose.random() < LEAVE_CHANCE else None
        text, ended = "", False
        pieces = streamed_text(http, request_body(kind))
        async for piece in pieces:
            if piece is None:
                ended = True
                break
            text += piece
            tally.num_tokens += 1
            if leave_after is not None and tally.num_tokens % leave_after == 0:
                break
        await pieces.aclose()  # type: ignore[attr-defined] # an async generator has it
        if not ended:
            tally.num_left += 1
            if leave_after is None:
                tally.problems.append(f"request {kind} ended without [DONE] after {text!r}")
        else:
            tally.num_completed += 1
            if text != solo[kind]:
                tally.problems.append(f"request {kind} alone: {solo[kind]!r}, now: {text!r}")


async def soak(url: str, seconds: float) -> Tally:
    """All clients for `seconds`; first every kind of request alone."""
    limits = httpx.Limits(max_connections=NUM_CLIENTS + 4)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        solo = [await whole_text(http, request_body(kind)) for kind in range(NUM_KINDS)]
        tally = Tally()
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(run_client(http, solo, n, end, tally) for n in range(NUM_CLIENTS)))
    return tally


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def num_handles(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def soak_and_check(directory: Path, warm_s: float, seconds: float) -> None:
    with Server(directory, *ARGUMENTS) as server:
        pids = (server.popen.pid, server.engine_pid)
        asyncio.run(soak(server.url, warm_s))  # caches, pools and heaps reach their size
        server.wait_idle()
        before = [(num_handles(pid), resident_bytes(pid)) for pid in pids]
        tally = asyncio.run(soak(server.url, seconds))
        server.wait_idle()
        assert server.connections_closed(), "a connection is still open"
        after = [(num_handles(pid), resident_bytes(pid)) for pid in pids]
        engine = server.health()["engine"]
        print(f"\n{tally.num_completed} completed, {tally.num_left} left early, ", end="")
        print(f"{tally.num_tokens} chunks in {seconds} s; {engine}; before {before} after {after}")
        assert not tally.problems, tally.problems[:3]
        assert tally.num_completed > NUM_CLIENTS
        assert tally.num_left > 0
        assert engine["preemptions"] > 0, "the cache was large enough: nothing was preempted"
        assert engine["kv_blocks_used"] == 0
        for (handles, memory), (handles_now, memory_now) in zip(before, after):
            assert handles_now <= handles
            assert memory_now - memory < ALLOWED_GROWTH_BYTES
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


def test_64_clients_get_the_answers_they_would_get_alone(tmp_path: Path) -> None:
    soak_and_check(tmp_path, warm_s=2, seconds=8)


@pytest.mark.long
def test_64_clients_get_the_answers_they_would_get_alone_for_a_minute(tmp_path: Path) -> None:
    soak_and_check(tmp_path, warm_s=10, seconds=60)
