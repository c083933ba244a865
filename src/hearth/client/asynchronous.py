"""AsyncClient: many requests at a time, for load generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from hearth.client.streaming import Arrival, StreamPool
from hearth.client.wire import Target, json_of, transport_error


class AsyncClient:
    """Belongs to one event loop; as many connections as there are requests."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._http = httpx.AsyncClient(
            base_url=target.root,
            headers=target.headers,
            timeout=httpx.Timeout(target.timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )
        self._streams = StreamPool(target)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._streams.close()
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """The JSON body of a GET. Raises RemoteError."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON body of a POST's answer. Raises RemoteError."""
        return await self._whole("POST", path, body)

    def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Arrival, None]:
        """Event payloads as they arrive, with their times; see StreamPool.stream."""
        return self._streams.stream(path, body)

    async def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            response = await self._http.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise transport_error(self.target, error) from error
        return json_of(f"{self.target.root}{path}", response.status_code, response.content)
