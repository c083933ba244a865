"""POST /tokenize, POST /detokenize and GET /version, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter, Request

from hearth import __version__
from hearth.core.errors import RequestError
from hearth.serve.chat_service import ChatService
from hearth.serve.http.answers import BODY_ERRORS, body_documentation, error_responses
from hearth.serve.http.body import Bodies
from hearth.serve.http.chat_fields import messages_of
from hearth.serve.http.completion_schemas import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)

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
        responses=error_responses(*BODY_ERRORS),
        openapi_extra=body_documentation(TokenizeRequest, _TOKENIZE_EXAMPLE),
        response_model_exclude_none=True,
    )
    async def tokenize(request: Request) -> TokenizeResponse:
        body = await bodies.read(request, TokenizeRequest)
        model.resolve_name(body.model)
        tokens = await _tokens_of(service, body)
        strings = (
            [tokenizer.token_text(i) or "" for i in tokens] if body.return_token_strs else None
        )
        return TokenizeResponse(
            count=len(tokens), max_model_len=model.max_model_len, tokens=tokens, token_strs=strings
        )

    @router.post(
        "/detokenize",
        summary="The text of tokens",
        responses=error_responses(*BODY_ERRORS),
        openapi_extra=body_documentation(DetokenizeRequest, _DETOKENIZE_EXAMPLE),
    )
    async def detokenize(request: Request) -> DetokenizeResponse:
        body = await bodies.read(request, DetokenizeRequest)
        model.resolve_name(body.model)
        service.check_token_ids("tokens", body.tokens)
        return DetokenizeResponse(prompt=tokenizer.decode_all(body.tokens))

    @router.get("/version", summary="The server's version")
    async def version() -> Version:
        return Version(version=__version__)

    return router


async def _tokens_of(service: ChatService, body: TokenizeRequest) -> list[int]:
    """Raises RequestError."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("tokenize takes prompt or messages, one of the two", param="prompt")
    if body.messages is not None:
        return await service.encode(
            messages_of(body.messages),
            variables=body.chat_template_kwargs or {},
            add_generation_prompt=body.add_generation_prompt,
            add_special_tokens=bool(body.add_special_tokens),
        )
    assert body.prompt is not None
    specials = True if body.add_special_tokens is None else body.add_special_tokens
    tokenizer = service.model.text.tokenizer
    return await tokenizer.encode_async(body.prompt, add_special_tokens=specials)
