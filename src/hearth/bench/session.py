"""One benchmark from its order to its result: model, prompts, warm-up, load, summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hearth.bench.datasets import load_conversations
from hearth.bench.lengths import Codec, LocalCodec, ServerCodec, Sizer, TokenSizer
from hearth.bench.metrics import summarize
from hearth.bench.records import Record
from hearth.bench.report import Run
from hearth.bench.runner import run_load
from hearth.bench.settings import DatasetChoice, Load, Query
from hearth.client.asynchronous import AsyncClient
from hearth.client.wire import Target
from hearth.core.errors import RemoteError


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure. `query.model` empty: the first that the server lists."""

    target: Target
    query: Query
    load: Load = field(default_factory=Load)
    dataset: DatasetChoice = field(default_factory=DatasetChoice)
    tokenizer_dir: str | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    percentiles: tuple[float, ...] = (99.0,)


async def run_benchmark(order: Order, on_record: Callable[[Record], None]) -> Run:
    """Runs it; `on_record` hears of every measured request.

    Raises ConfigError, or RemoteError where the server cannot be reached or a warm-up fails.
    """
    async with AsyncClient(order.target) as client:
        query = order.query
        if not query.model:
            query = replace(query, model=await served_model_name(client))
        sizer = await _sizer(order, client, query.model)
        load = order.load
        if load.num_warmups:
            await _warm_up(order, client, query, sizer)
        conversations = await load_conversations(order.dataset, load.num_prompts, load.seed, sizer)
        began, cpu_before = time.perf_counter(), time.process_time()
        records = await run_load(client, query, load, conversations, on_record)
        client_cpu = (time.process_time() - cpu_before) / (time.perf_counter() - began)
    summary = summarize(records, order.percentiles, order.objectives)
    return Run(
        order.target.root,
        query,
        load,
        order.dataset,
        order.objectives,
        summary,
        tuple(records),
        client_cpu,
    )


async def served_model_name(client: AsyncClient) -> str:
    """The first model of `/v1/models`. Raises RemoteError."""
    body = await client.get("/v1/models")
    try:
        return str(body["data"][0]["id"])
    except (LookupError, TypeError) as error:
        raise RemoteError(
            f"{client.target.root} lists no model", hint="name one with --model"
        ) from error


async def _sizer(order: Order, client: AsyncClient, model: str) -> Sizer | None:
    """Files need no tokenizer; the served one is asked where no directory is named."""
    if order.dataset.name == "jsonl":
        return None
    codec: Codec
    if order.tokenizer_dir is not None:
        codec = LocalCodec(order.tokenizer_dir)
    else:
        codec = served = ServerCodec(client, model)
        await served.check()
    return TokenSizer(codec)


async def _warm_up(order: Order, client: AsyncClient, query: Query, sizer: Sizer | None) -> None:
    """Requests that are not measured, with prompts of their own. Raises RemoteError."""
    load = replace(
        order.load, num_prompts=order.load.num_warmups, request_rate=float("inf"), num_warmups=0
    )
    # Another seed: the measured prompts must not be in the server's prefix cache.
    prompts = await load_conversations(order.dataset, load.num_prompts, load.seed + 1, sizer)
    for record in await run_load(client, query, load, prompts):
        if record.error:
            raise RemoteError(f"a warm-up request failed: {record.error}")
