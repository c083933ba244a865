"""POST /tokenize, POST /detokenize and GET /version, in vLLM's shapes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from hearth import __version__
from hearth.core.errors import RequestError
from hearth.serve.chat_service import ChatService
from hearth.serve.http.answers import BODY_ERRORS, body_documentation, error_responses
from hearth.serve.http.body import Bodies
from hearth.serve.http.chat_fields import conversation_of
from hearth.serve.http.completion_schemas import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)
from hearth.serve.http.deadlines import DEADLINE_RESPONSE, header_seconds, prepared
from hearth.serve.pipeline import Call

# Tokens that are looked up or decoded in a thread: some 5 ms of work.
THREAD_THRESHOLD_TOKENS = 16_384

_encoder = msgspec.json.Encoder()
_TOKENIZE_EXAMPLE = {"prompt": "What is hearth?"}
_DETOKENIZE_EXAMPLE = {"tokens": [1, 2, 3]}


def tokens_router(service: ChatService, bodies: Bodies) -> APIRouter:
    """The endpoints for the tokenizer and chat template of the served model."""
    router = APIRouter(tags=["tokens"])
    model = service.model
    tokenizer = model.text.tokenizer

    @router.post(
        "/tokenize",
        summary="Tokens of a text or of messages",
        responses={**error_responses(*BODY_ERRORS), 504: DEADLINE_RESPONSE},
        openapi_extra=body_documentation(TokenizeRequest, _TOKENIZE_EXAMPLE),
        response_model=TokenizeResponse,
    )
    async def tokenize(request: Request) -> Response:
        body = await bodies.read(request, TokenizeRequest)
        model.resolve_name(body.model)
        call = Call(timeout_s=header_seconds(request))
        found = await prepared(request, _tokens_of(service, body), service.deadline_of(call))
        if isinstance(found, Response):
            return found
        tokens = found
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": model.max_model_len,
            "tokens": tokens,
        }

        def encoded() -> Response:
            if body.return_token_strs:
                answer["token_strs"] = [tokenizer.token_text(i) or "" for i in tokens]
            return _json(answer)

        return await _in_thread(len(tokens), encoded)

    @router.post(
        "/detokenize",
        summary="The text of tokens",
        responses=error_responses(*BODY_ERRORS),
        response_model=DetokenizeResponse,
        openapi_extra=body_documentation(DetokenizeRequest, _DETOKENIZE_EXAMPLE),
    )
    async def detokenize(request: Request) -> Response:
        body = await bodies.read(request, DetokenizeRequest)
        model.resolve_name(body.model)

        def decoded() -> Response:
            service.check_token_ids("tokens", body.tokens)
            return _json({"prompt": tokenizer.decode_all(body.tokens)})

        return await _in_thread(len(body.tokens), decoded)

    @router.get("/version", summary="The server's version")
    async def version() -> Version:
        return Version(version=__version__)

    return router


async def _in_thread(num_tokens: int, make: Callable[[], Response]) -> Response:
    """What `make` makes; of many tokens in a thread, so that other requests go on."""
    return make() if num_tokens < THREAD_THRESHOLD_TOKENS else await asyncio.to_thread(make)


def _json(body: dict[str, Any]) -> Response:
    return Response(_encoder.encode(body), media_type="application/json")


async def _tokens_of(service: ChatService, body: TokenizeRequest) -> Sequence[int]:
    """Raises RequestError, OverloadedError."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("tokenize takes prompt or messages, one of the two", param="prompt")
    if body.messages is not None:
        conversation = conversation_of(body.messages, takes_images=service.takes_images)
        # Counting the tokens of texts is no work that the engine's places would have to bound.
        with service.room.place() if conversation.images else contextlib.nullcontext():
            prompt = await service.encode(
                conversation,
                variables=body.chat_template_kwargs or {},
                add_generation_prompt=body.add_generation_prompt is not False,
                add_special_tokens=bool(body.add_special_tokens),
            )
        prompt.close()  # of images only the number of their tokens is wanted
        return prompt.tokens
    assert body.prompt is not None
    specials = True if body.add_special_tokens is None else body.add_special_tokens
    tokenizer = service.model.text.tokenizer
    return await tokenizer.encode_async(body.prompt, add_special_tokens=specials)
