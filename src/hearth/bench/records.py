"""Record: what was seen of one request, and how it is seen.

Times are seconds of `time.perf_counter`, taken when the bytes were read. The definitions are those
of `vllm bench serve`, with one difference: only events that carry text count, as the first token
and for the latency between tokens. There every event does, also a role that some servers send
before they have computed anything, and the finish reason: with a server that sends those beside the
text that is two more latencies of nothing for each request. An event is one latency, however many
tokens it brings; events that one read brings together are no time apart.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hearth.bench.settings import CHAT, Query
from hearth.client.asynchronous import AsyncClient
from hearth.client.sse import DONE
from hearth.client.wire import parse_event
from hearth.core.errors import RemoteError

NOT_SENT = "not sent: an earlier turn of the conversation failed"


@dataclass(slots=True)
class Record:
    """One request. It failed where `error` is not empty; the other fields then say how far it came.

    `num_output_tokens` is the server's own count, or the number of text events where it gives none
    (`is_counted_by_server` says which).
    """

    started_s: float
    ended_s: float = 0.0
    ttft_s: float = 0.0
    itls_s: list[float] = field(default_factory=list)
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    is_counted_by_server: bool = False
    finish_reason: str | None = None
    text: str = ""
    error: str = ""

    @property
    def latency_s(self) -> float:
        """From the request's start to its last event."""
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first."""
        return (self.latency_s - self.ttft_s) / max(1, self.num_output_tokens - 1)


def body_of(query: Query, prompt: Any, max_tokens: int) -> dict[str, Any]:
    """The body of one request; `prompt` is a list of messages, or text for completions."""
    body: dict[str, Any] = {
        "model": query.model,
        "messages" if query.backend == CHAT else "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if query.temperature is not None:
        body["temperature"] = query.temperature
    if query.ignore_eos:
        body["ignore_eos"] = True
    return {**body, **query.extra_body}


async def measure(
    client: AsyncClient, path: str, body: Mapping[str, Any], num_input_tokens: int
) -> Record:
    """Sends one request and watches its stream; a failure is noted in the record."""
    record = Record(time.perf_counter(), num_input_tokens=num_input_tokens)
    watch = _Watch(record)
    try:
        async with contextlib.aclosing(client.stream(path, body)) as events:
            async for arrival in events:
                for payload in arrival.payloads:
                    watch.take(payload, arrival.seconds)
        watch.end()
    except RemoteError as error:
        record.error = error.message
        record.ended_s = time.perf_counter()
    return record


class _Watch:
    """Fills a record from the events of its stream."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._texts: list[str] = []
        self._last_s = record.started_s
        self._first_choice_s: float | None = None
        self._is_done = False

    def take(self, payload: bytes, now: float) -> None:
        """One event. Raises RemoteError."""
        record = self._record
        if payload == DONE:
            self._is_done = True
            return
        piece = parse_event(payload)
        if piece.num_completion_tokens is not None:
            record.num_output_tokens = piece.num_completion_tokens
            record.is_counted_by_server = True
        record.num_input_tokens = piece.num_prompt_tokens or record.num_input_tokens
        if not piece.has_choice:
            return
        record.ended_s = now
        record.finish_reason = piece.finish_reason or record.finish_reason
        self._first_choice_s = self._first_choice_s or now
        if piece.text:
            if self._texts:
                record.itls_s.append(now - self._last_s)
            else:
                record.ttft_s = now - record.started_s
            self._last_s = now
            self._texts.append(piece.text)

    def end(self) -> None:
        """The stream is over. Raises RemoteError where it was cut off."""
        record = self._record
        if self._first_choice_s is None or not (self._is_done or record.finish_reason):
            raise RemoteError("the stream ended without a finish reason")
        if not self._texts:  # tokens that are no text, such as an immediate stop token
            record.ttft_s = self._first_choice_s - record.started_s
        if not record.is_counted_by_server:
            record.num_output_tokens = len(self._texts)
        record.text = "".join(self._texts)
