"""BlockingClient: one request at a time, for a person at a terminal.

A KeyboardInterrupt in the middle of an answer leaves the context of its stream, which closes the
connection; the server then stops working on it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import httpx

from hearth.client.sse import DONE, EventSplitter
from hearth.client.wire import (
    Piece,
    Target,
    encoded,
    json_of,
    parse_event,
    refusal,
    transport_error,
)
from hearth.core.errors import RemoteError

_JSON = {"Content-Type": "application/json"}


class BlockingClient:
    """A connection to one server."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._http = httpx.Client(
            base_url=target.root,
            headers=target.headers,
            timeout=httpx.Timeout(target.timeout_s, connect=5.0),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def model_names(self, timeout_s: float | None = None) -> list[str]:
        """The served names. Raises RemoteError."""
        listed = self._whole("GET", "/v1/models", None, timeout_s)
        try:
            return [str(card["id"]) for card in listed["data"]]
        except (LookupError, TypeError) as error:
            raise RemoteError(f"{self.target.root} does not list its models") from error

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """The JSON body of a POST's answer. Raises RemoteError."""
        return self._whole("POST", path, encoded(body), timeout_s)

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The answer's pieces as they come; otherwise as `payloads`."""
        with closing(self.payloads(path, {**body, "stream": True})) as payloads:
            for payload in payloads:
                yield parse_event(payload)

    def payloads(self, path: str, body: Mapping[str, Any]) -> Generator[bytes, None, None]:
        """A streamed answer's events as they come; close the generator to end the answer early.

        Raises RemoteError, also where the answer was cut off.
        """
        splitter = EventSplitter()
        try:
            with self._http.stream("POST", path, content=encoded(body), headers=_JSON) as response:
                if not response.is_success:
                    raise refusal(response.status_code, response.read())
                for chunk in response.iter_raw():
                    for payload in splitter.feed(chunk):
                        if payload == DONE:
                            return
                        yield payload
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise transport_error(self.target, error) from error
        raise RemoteError("the answer was cut off: its stream ended too early")

    def _whole(self, method: str, path: str, content: bytes | None, timeout_s: float | None) -> Any:
        wait = self.target.timeout_s if timeout_s is None else timeout_s
        try:
            response = self._http.request(
                method, path, content=content, headers=_JSON, timeout=wait
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise transport_error(self.target, error) from error
        return json_of(f"{self.target.root}{path}", response.status_code, response.content)
