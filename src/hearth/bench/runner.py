"""Sends conversations to a server when their time has come, and gathers the records.

Every turn ends up as one record: sent and completed, sent and failed, or not sent because an
earlier turn of its conversation failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from hearth.bench.datasets import Conversation, Turn
from hearth.bench.records import NOT_SENT, Record, body_of, measure
from hearth.bench.settings import CHAT, Load, Query
from hearth.client.asynchronous import AsyncClient

OnRecord = Callable[[Record], None]


async def run_load(
    client: AsyncClient,
    query: Query,
    load: Load,
    conversations: Sequence[Conversation],
    on_record: OnRecord = lambda _: None,
) -> list[Record]:
    """Records of all turns, in the order in which they ended."""
    records: list[Record] = []
    slots: contextlib.AbstractAsyncContextManager[Any] = (
        contextlib.nullcontext()
        if load.max_concurrency is None
        else asyncio.Semaphore(load.max_concurrency)
    )

    def note(record: Record) -> None:
        records.append(record)
        on_record(record)

    async def converse(conversation: Conversation) -> None:
        history: list[dict[str, Any]] = []
        has_failed = False
        for turn in conversation.turns:
            if has_failed:
                note(Record(time.perf_counter(), error=NOT_SENT))
                continue
            history.extend(turn.messages)
            async with slots:
                record = await _send(client, query, turn, history)
            note(record)
            has_failed = bool(record.error)
            history.append({"role": "assistant", "content": record.text})

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for offset, conversation in zip(
            arrival_times(load, len(conversations)), conversations, strict=True
        ):
            delay = started_s + offset - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(converse(conversation))
    return records


def arrival_times(load: Load, count: int) -> list[float]:
    """Seconds from the start at which conversations begin, ascending.

    Intervals are gamma distributed; as in `vllm bench serve` they are scaled so that the last one
    arrives when the rate says.
    """
    if load.request_rate == float("inf"):
        return [0.0] * count
    rng = random.Random(load.seed)
    scale = 1 / (load.request_rate * load.burstiness)
    times: list[float] = []
    now = 0.0
    for _ in range(count):
        now += rng.gammavariate(load.burstiness, scale)
        times.append(now)
    wanted = count / load.request_rate
    return [moment * wanted / now for moment in times] if now else times


async def _send(
    client: AsyncClient, query: Query, turn: Turn, history: Sequence[dict[str, Any]]
) -> Record:
    prompt: Any = list(history)
    if query.backend != CHAT:
        prompt = "\n\n".join(str(message["content"]) for message in history)
    body = body_of(query, prompt, turn.max_tokens)
    return await measure(client, query.path, body, turn.num_tokens)
