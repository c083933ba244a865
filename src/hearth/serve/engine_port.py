"""What serving needs of an engine: the part of EngineClient that it calls, as a protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from hearth.core.events import EngineStats
from hearth.core.request import Request, TokenEvent


class EnginePort(Protocol):
    """An engine that takes requests. `hearth.engine.client.EngineClient` is one."""

    @property
    def is_alive(self) -> bool:
        """Whether requests can be submitted."""
        ...

    @property
    def num_running(self) -> int:
        """Requests submitted and not ended."""
        ...

    @property
    def died(self) -> asyncio.Future[int]:
        """Resolves to the exit code when the engine is gone."""
        ...

    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Starts a request; the iterator ends after exactly one terminal event.

        Raises OverloadedError or EngineDeadError.
        """
        ...

    def check_room(self, num_more: int = 0) -> None:
        """Raises OverloadedError when `submit` would after `num_more` requests that come before.

        For before any work is done for a request.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request; an unknown or ended one is ignored."""
        ...

    async def stats(self) -> EngineStats:
        """A snapshot of the engine. Raises EngineDeadError."""
        ...
