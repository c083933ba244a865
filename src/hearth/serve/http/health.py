"""GET /health: whether requests can be answered, and how many are being answered.

UP means that the engine process lives; DOWN is answered with 503. Counts come from the engine,
which answers between two steps; when a step takes longer than STATS_TIMEOUT_S, `running` is the
front end's own count of requests and `waiting` is null.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from fastapi import APIRouter, Response

from hearth import __version__
from hearth.core.errors import EngineError
from hearth.serve.engine_port import EnginePort
from hearth.serve.http.schemas import Health

STATS_TIMEOUT_S = 2.0


def health_router(engine: EnginePort, model_name: str) -> APIRouter:
    """The endpoint for one engine."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/health",
        summary="Whether the server can answer",
        responses={503: {"model": Health}},
    )
    async def health(response: Response) -> Health:
        is_up = engine.is_alive
        running, waiting = engine.num_running, None
        if is_up:
            try:
                stats = await asyncio.wait_for(engine.stats(), STATS_TIMEOUT_S)
                running, waiting = stats.num_running, stats.num_waiting
            except TimeoutError:
                pass
            except EngineError:
                is_up = False
        if not is_up:
            response.status_code = 503
        return Health(
            status="UP" if is_up else "DOWN",
            model=model_name,
            version=__version__,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            running=running,
            waiting=waiting,
        )

    return router
