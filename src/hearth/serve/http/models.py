"""GET /v1/models and GET /v1/models/{name}."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from hearth.serve.http.answers import error_responses
from hearth.serve.http.schemas import ModelCard, ModelList, QualityBody, RoundingBody
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
            quality=_quality(model),
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


def _quality(model: ServedModel) -> QualityBody | None:
    summary, rounding = model.quality, model.rounding
    left = None if rounding is None else RoundingBody(**asdict(rounding))
    if summary is None:
        return None if left is None else QualityBody(rounding=left)
    return QualityBody(
        rounding=left,
        scheme=summary.scheme,
        method=summary.method,
        reference=summary.reference,
        perplexity=summary.perplexity,
        reference_perplexity=summary.reference_perplexity,
        perplexity_change=summary.perplexity_change,
        perplexity_change_error=summary.perplexity_change_error,
        kl_divergence=summary.kl,
        kl_divergence_999=summary.kl_999,
        same_best_token=summary.top1,
        text=summary.text,
        text_sha256=summary.text_sha256,
        num_tokens=summary.num_tokens,
        measured_at=summary.measured_at,
        hearth_version=summary.hearth_version,
    )
