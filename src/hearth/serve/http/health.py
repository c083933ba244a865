"""GET /health: whether requests can be answered, and how many are being answered.

UP means that the engine process lives; DOWN is answered with 503. Counts come from the engine,
which answers between two steps; when a step takes longer than STATS_TIMEOUT_S, `running` is the
front end's own count of requests, `waiting`, `engine` and `memory` are null. `executor` names what
runs the model: `cpu` is hearth's own kernels, anything else is slower.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from fastapi import APIRouter, Response

from hearth import __version__
from hearth.core.errors import EngineError
from hearth.core.events import EngineStats
from hearth.host.memory import read_peak_bytes
from hearth.serve.engine_port import EnginePort
from hearth.serve.http.schemas import EngineCounts, Health, MemoryUse
from hearth.serve.model import ServedModel

STATS_TIMEOUT_S = 2.0


def health_router(engine: EnginePort, model: ServedModel) -> APIRouter:
    """The endpoint for one engine."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/health",
        summary="Whether the server can answer",
        responses={503: {"model": Health}},
    )
    async def health(response: Response) -> Health:
        is_up = engine.is_alive
        running, waiting, counts, memory = engine.num_running, None, None, None
        if is_up:
            try:
                stats = await asyncio.wait_for(engine.stats(), STATS_TIMEOUT_S)
                running, waiting = stats.num_running, stats.num_waiting
                counts, memory = _counts(stats), _memory(stats, model)
            except TimeoutError:
                pass
            except EngineError:
                is_up = False
        if not is_up:
            response.status_code = 503
        return Health(
            status="UP" if is_up else "DOWN",
            model=model.names[0],
            executor=model.executor,
            kv_cache_dtype=model.kv_cache_dtype,
            version=__version__,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            running=running,
            waiting=waiting,
            engine=counts,
            memory=memory,
        )

    return router


def _memory(stats: EngineStats, model: ServedModel) -> MemoryUse:
    """What was planned, and what the processes have had: pages of both count twice."""
    return MemoryUse(
        planned_bytes=model.planned_bytes, peak_bytes=stats.peak_bytes + read_peak_bytes()
    )


def _counts(stats: EngineStats) -> EngineCounts:
    return EngineCounts(
        kv_blocks_total=stats.num_blocks_total,
        kv_blocks_used=stats.num_blocks_used,
        kv_blocks_cached=stats.num_blocks_cached,
        preemptions=stats.num_preemptions,
        steps=stats.num_steps,
        generated_tokens=stats.num_generated_tokens,
        execute_seconds=stats.execute_s,
        prefix_hit_tokens=stats.num_prefix_hit_tokens,
        drafts=stats.num_drafts,
        draft_tokens=stats.num_draft_tokens,
        accepted_tokens=stats.num_accepted_tokens,
        images_encoded=stats.num_images,
        encode_seconds=stats.encode_s,
    )
