"""GET /v1/models and GET /v1/models/{name}."""

from __future__ import annotations

from fastapi import APIRouter

from hearth.serve.http.answers import error_responses
from hearth.serve.http.schemas import ModelCard, ModelList
from hearth.serve.model import ServedModel


def models_router(model: ServedModel) -> APIRouter:
    """The endpoints; every served name is a model of its own to clients."""
    router = APIRouter(tags=["models"])

    def card(name: str) -> ModelCard:
        return ModelCard(
            id=name,
            created=model.created,
            root=model.names[0],
            max_model_len=model.max_model_len,
        )

    @router.get("/v1/models", summary="List the served models")
    async def list_models() -> ModelList:
        return ModelList(data=[card(name) for name in model.names])

    @router.get(
        "/v1/models/{name:path}",
        summary="Show one served model",
        responses=error_responses(404),
    )
    async def show_model(name: str) -> ModelCard:
        return card(model.resolve_name(name))

    return router
