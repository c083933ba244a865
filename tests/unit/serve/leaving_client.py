"""A client that sends a chat request and goes away when a test says so, over bare ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI
from tests.unit.serve.fake_engine import FakeEngine

PATH = "/v1/chat/completions"
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": PATH,
    "raw_path": PATH.encode(),
    "query_string": b"",
    "headers": [],
    "http_version": "1.1",
    "scheme": "http",
    "root_path": "",
    "server": ("test", 80),
}


class LeavingClient:
    """Takes nothing of its answer."""

    def __init__(self, app: FastAPI, body: dict[str, Any]) -> None:
        self._gone = asyncio.Event()
        content = json.dumps(body).encode()
        self._inbox = [{"type": "http.request", "body": content, "more_body": False}]
        self._answer = asyncio.ensure_future(app(dict(SCOPE), self._receive, self._send))

    async def submitted(self, engine: FakeEngine) -> None:
        """Waits until the engine has the request."""
        async with asyncio.timeout(10):
            while not engine.submitted:  # noqa: ASYNC110 -- the fake has no event for it
                await asyncio.sleep(0.001)

    async def leave(self) -> None:
        """Goes away, and waits until the server is done with the request."""
        self._gone.set()
        await asyncio.wait_for(self._answer, 5)

    async def _receive(self) -> dict[str, Any]:
        if self._inbox:
            return self._inbox.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        pass
