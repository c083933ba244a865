"""The HTTP application: composes the endpoints over one engine and one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hearth import __version__
from hearth.core.config import DEFAULT_MEDIA, MediaConfig
from hearth.serve.chat_service import ChatService
from hearth.serve.completion_service import CompletionService
from hearth.serve.engine_port import EnginePort
from hearth.serve.http.body import Bodies
from hearth.serve.http.chat import chat_router
from hearth.serve.http.completion_schemas import (
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from hearth.serve.http.completions import completions_router
from hearth.serve.http.docs import docs_router
from hearth.serve.http.errors import install_error_handlers
from hearth.serve.http.health import health_router
from hearth.serve.http.models import models_router
from hearth.serve.http.schemas import ChatCompletionRequest
from hearth.serve.http.tokens import tokens_router
from hearth.serve.model import ServedModel
from hearth.serve.pipeline import Room

if TYPE_CHECKING:
    from hearth.engine.images.loader import ImageLoader

OPENAPI_URL = "/openapi.json"
DEFAULT_MAX_BODY_BYTES = 32 << 20
_BODIES: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


def create_app(
    engine: EnginePort,
    model: ServedModel,
    *,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    request_timeout_s: float = 0.0,
    media: MediaConfig = DEFAULT_MEDIA,
) -> FastAPI:
    """The application; it starts nothing and owns neither engine nor model.

    An image that is fetched or read for a request may be as large as a body.
    """
    app = FastAPI(title="hearth", version=__version__, docs_url=None, redoc_url=None)
    loader = _image_loader(model, media, max_body_bytes)
    room = Room(engine)
    chat = ChatService(engine, model, request_timeout_s=request_timeout_s, room=room, loader=loader)
    completion = CompletionService(engine, model, request_timeout_s=request_timeout_s, room=room)
    bodies = Bodies(max_body_bytes)
    routers = (
        chat_router(chat, bodies),
        completions_router(completion, bodies),
        tokens_router(chat, bodies),
        models_router(model),
        health_router(engine, model),
        docs_router(OPENAPI_URL),
    )
    for router in routers:
        _answer_head(router)
        app.include_router(router)
    install_error_handlers(app)
    _document(app)
    return app


def _image_loader(model: ServedModel, media: MediaConfig, max_bytes: int) -> ImageLoader | None:
    """What loads images for this model; None, and nothing imported, where it takes none."""
    if model.images is None:
        return None
    from hearth.engine.images.loader import ImageLoader

    return ImageLoader(model.images, media, max_bytes)


def _answer_head(router: APIRouter) -> None:
    """HEAD wherever there is GET (RFC 9110, 9.3.2); the HTTP server leaves the body out."""
    for route in [route for route in router.routes if isinstance(route, APIRoute)]:
        if "GET" in (route.methods or ()):
            router.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=route.response_model,
                include_in_schema=False,
            )


def _document(app: FastAPI) -> None:
    """Adds the bodies that endpoints read themselves to the OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                routes=app.routes,
                description="OpenAI-compatible chat on your own hardware.",
            )
            _, bodies = models_json_schema(
                [(schema, "validation") for schema in _BODIES],
                ref_template="#/components/schemas/{model}",
            )
            document["components"]["schemas"].update(bodies["$defs"])
            _drop_422(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _drop_422(document: dict[str, Any]) -> None:
    """FastAPI documents its own form of a refused request, which is never sent here."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
