"""An engine in this process that answers from a script, and a model to go with it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
from tests.unit.text import builders, templates

from hearth.core.errors import DeadlineExceededError, EngineDeadError, OverloadedError
from hearth.core.events import EngineStats
from hearth.core.request import (
    FinishReason,
    PromptLogprobs,
    Request,
    TokenEvent,
    TokenLogprobs,
)
from hearth.engine.text.chat_template import ChatTemplate
from hearth.engine.text.tokenizer import Tokenizer
from hearth.engine.text.tokenizer_config import TokenizerConfig
from hearth.models.generation_config import GenerationDefaults
from hearth.serve.app import create_app
from hearth.serve.model import ServedModel, TextFiles

EOS = 0  # <|endoftext|> of the byte-level tokenizer
MAX_MODEL_LEN = 400
NAMES = ("toy", "org/alias")


def text_files(template: str | None = templates.CHATML) -> TextFiles:
    tokenizer = Tokenizer(
        builders.byte_level(), TokenizerConfig(special_tokens={"eos_token": "<|endoftext|>"})
    )
    return TextFiles(tokenizer, None if template is None else ChatTemplate(template, {}))


def toy_model(template: str | None = templates.CHATML, **changes: Any) -> ServedModel:
    text = text_files(template)
    settings: dict[str, Any] = {
        "names": NAMES,
        "text": text,
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": text.tokenizer.num_tokens,
        "stop_token_ids": frozenset({EOS}),
        "created": 1_700_000_000,
        "defaults": GenerationDefaults(temperature=0.5, reason="a test"),
    }
    return ServedModel(**{**settings, **changes})


class FakeEngine:
    """Gives `answer` token by token (or in `groups`), then a stop token, unless told otherwise."""

    def __init__(self, tokenizer: Tokenizer, answer: str = "hello world") -> None:
        self.tokenizer = tokenizer
        self.answer = answer
        self.group = 1
        self.is_alive = True
        self.stall_after: int | None = None  # waits for ever after so many events
        self.fail_after: int | None = None
        self.expire_after: int | None = None
        self.submit_error: Exception | None = None
        self.stats_error: Exception | None = None
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.running: set[str] = set()
        self.num_cached = 0
        self.max_requests = 10_000
        self.exit_code = 0
        self._died: asyncio.Future[int] | None = None

    @property
    def died(self) -> asyncio.Future[int]:
        if self._died is None:
            self._died = asyncio.get_running_loop().create_future()
        return self._died

    @property
    def num_running(self) -> int:
        return len(self.running)

    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        if self.submit_error is not None:
            raise self.submit_error
        self.submitted.append(request)
        self.running.add(request.request_id)
        return self._events(request)

    def check_room(self, num_more: int = 0) -> None:
        if isinstance(self.submit_error, OverloadedError):
            raise self.submit_error
        if len(self.running) + num_more >= self.max_requests:
            raise OverloadedError(f"{self.max_requests} requests run")

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.running.discard(request_id)

    async def stats(self) -> EngineStats:
        if self.stats_error is not None:
            raise self.stats_error
        return EngineStats(len(self.running), 3, 10, 10, 0, 0)

    async def shutdown(self, grace_s: float = 5.0) -> int:
        self.is_alive = False
        if not self.died.done():
            self.died.set_result(0)
        return 0

    async def _events(self, request: Request) -> AsyncIterator[TokenEvent]:
        request_id = request.request_id
        for chunk in prompt_scores(request):
            await asyncio.sleep(0)
            yield TokenEvent(request_id, prompt_logprobs=chunk)
        tokens = self.tokenizer.encode(self.answer)
        is_cut = len(tokens) > request.max_tokens
        tokens = tokens[: request.max_tokens]
        for count, start in enumerate(range(0, len(tokens), self.group)):
            if self.stall_after == count:
                await asyncio.Event().wait()
            if self.expire_after == count:
                self.running.discard(request_id)
                yield TokenEvent(
                    request_id,
                    finish_reason=FinishReason.ERROR,
                    message="its time was over",
                    error_code=DeadlineExceededError.code,
                )
                return
            if self.fail_after == count:
                yield self._failure(request_id)
                return
            await asyncio.sleep(0)
            group: Sequence[int] = tokens[start : start + self.group]
            yield TokenEvent(
                request_id,
                tuple(group),
                num_cached_tokens=self.num_cached,
                logprobs=self._logprobs(request, group),
            )
        self.running.discard(request_id)
        if is_cut:
            yield TokenEvent(request_id, finish_reason=FinishReason.LENGTH)
        else:
            yield TokenEvent(request_id, finish_reason=FinishReason.STOP, stop_token=EOS)

    def _logprobs(self, request: Request, tokens: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        """−0.5 for the token, then −1, −2, … for ids from 1 on."""
        count = request.sampling.num_logprobs
        if count < 0:
            return ()
        top = tuple((i, -float(i)) for i in range(1, count + 1))
        return tuple(TokenLogprobs(-0.5, top) for _ in tokens)

    def _failure(self, request_id: str) -> TokenEvent:
        self.running.discard(request_id)
        return TokenEvent(
            request_id,
            finish_reason=FinishReason.ERROR,
            message="the engine process is gone",
            error_code=EngineDeadError.code,
        )


def prompt_scores(request: Request, chunk_tokens: int = 2) -> Iterator[PromptLogprobs]:
    """−i for the token at index i, rank i, best tokens 1, 2, … with −0.5, −1.5, …"""
    count = request.sampling.num_prompt_logprobs
    if count < 0:
        return
    for start in range(1, len(request.prompt), chunk_tokens):
        places = range(start, min(start + chunk_tokens, len(request.prompt)))
        best = range(1, count + 1)
        yield PromptLogprobs(
            start,
            count,
            array("f", [-float(i) for i in places]).tobytes(),
            array("i", places).tobytes(),
            array("i", [token for _ in places for token in best]).tobytes(),
            array("f", [0.5 - token for _ in places for token in best]).tobytes(),
        )


def client_for(
    engine: FakeEngine, model: ServedModel, max_body_bytes: int = 32 << 20
) -> httpx.AsyncClient:
    app = create_app(engine, model, max_body_bytes=max_body_bytes)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")
