"""Chat: from messages to a job of the pipeline. Knows nothing of HTTP.

messages ─ render ─ encode ─▶ Pipeline.job
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hearth.core.errors import RequestError
from hearth.serve.pipeline import Call, Pipeline
from hearth.serve.running_answer import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall(Call):
    """A conversation to go on with."""

    messages: tuple[dict[str, Any], ...]
    template_variables: Mapping[str, Any] = field(default_factory=dict)


class ChatService(Pipeline):
    """Answers chats with one model on one engine."""

    prompt_param = "messages"

    async def prepare(self, call: ChatCall) -> Job:
        """Renders, encodes and checks. Raises RequestError and its kinds, OverloadedError."""
        self.engine.check_room()
        self.model.resolve_name(call.model)  # before the work on what may be a long prompt
        prompt = await self.encode(call.messages, variables=call.template_variables)
        return self.job(call, prompt, f"chatcmpl-{uuid.uuid4().hex}")

    async def encode(
        self,
        messages: tuple[dict[str, Any], ...],
        *,
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """The prompt's tokens. Raises RequestError."""
        text = self.model.text
        if text.template is None:
            raise RequestError(
                "this model has no chat template, so it cannot take messages",
                hint="put a chat_template.jinja into the model directory and restart",
                param="messages",
            )
        rendered = text.template.render(
            messages, add_generation_prompt=add_generation_prompt, variables=variables
        )
        self.check_length(rendered)
        prompt = await text.tokenizer.encode_async(rendered, add_special_tokens=add_special_tokens)
        if not prompt:
            raise RequestError("the messages render to an empty prompt", param="messages")
        return prompt
