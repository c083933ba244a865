"""What the endpoints that generate answers share: events, usage, and their documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Response
from pydantic import BaseModel

from hearth.serve.http.schemas import ErrorBody, PromptTokensDetails, UsageBody
from hearth.serve.http.sse import event_bytes
from hearth.serve.notices import Notice
from hearth.serve.running_answer import Usage

REQUEST_ID_HEADER = "x-request-id"  # where OpenAI's clients look for it
_encoder = msgspec.json.Encoder()


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documents the errors of an endpoint, all in one form."""
    return {
        status: {"model": ErrorBody, "description": _ERRORS[status]} for status in sorted(statuses)
    }


_ERRORS = {
    400: "The request cannot be answered as it stands; `param` names the field",
    404: "The model is not served here",
    408: "Nothing came of the body for a minute; the connection is closed",
    413: "The body is larger than the server accepts",
    429: "The queue is full, or too many bodies are being read; try again after `Retry-After`",
    503: "The engine is gone; try again after `Retry-After`",
}
BODY_ERRORS = (400, 404, 408, 413, 429)
ANSWER_ERRORS = (*BODY_ERRORS, 503)


@dataclass(frozen=True, slots=True)
class Answer:
    """What every part of one answer repeats; `kind` is the `object` of its events."""

    request_id: str
    kind: str
    created: int
    model: str
    notices: Sequence[Notice]
    shows_usage: bool

    def chunk(self, choices: list[dict[str, Any]], **fields: object) -> bytes:
        """One event of a streamed answer."""
        usage: dict[str, object] = {"usage": None} if self.shows_usage else {}
        return event_bytes(
            {
                "id": self.request_id,
                "object": self.kind,
                "created": self.created,
                "model": self.model,
                "choices": choices,
                **usage,
                **fields,
            }
        )

    def warnings(self) -> list[dict[str, str]]:
        """The notices as the response shows them."""
        return [notice.body() for notice in self.notices]


def json_response(body: Mapping[str, Any], request_id: str) -> Response:
    """A whole answer; parts of it may have been encoded before."""
    return Response(
        _encoder.encode(body),
        media_type="application/json",
        headers={REQUEST_ID_HEADER: request_id},
    )


def usage_body(usage: Usage) -> UsageBody:
    """Usage in OpenAI's form."""
    return UsageBody(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_completion_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=usage.num_cached_tokens, image_tokens=usage.num_image_tokens or None
        ),
    )


def body_documentation(schema: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """Documents a body that `read_body` reads, so that its errors are ours."""
    content = {
        "schema": {"$ref": f"#/components/schemas/{schema.__name__}"},
        "example": dict(example),
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
