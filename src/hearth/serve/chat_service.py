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
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # go on with the last message instead of answering it
    echo: bool = False  # begin the answer with the last message where it is of the same role


class ChatService(Pipeline):
    """Answers chats with one model on one engine."""

    prompt_param = "messages"

    async def prepare(self, call: ChatCall) -> Job:
        """Renders, encodes and checks. Raises RequestError and its kinds, OverloadedError."""
        self.engine.check_room()
        self.model.resolve_name(call.model)  # before the work on what may be a long prompt
        prompt = await self.encode(
            call.messages,
            variables=call.template_variables,
            add_generation_prompt=call.add_generation_prompt,
            continue_final_message=call.continue_final_message,
            may_be_cut=call.truncate_prompt_tokens is not None,
        )
        echo = _echo_of(call.messages[-1]) if call.echo else ""
        bad_words = await self.words_of(call)
        return self.job(call, prompt, f"chatcmpl-{uuid.uuid4().hex}", echo, bad_words)

    async def encode(
        self,
        messages: tuple[dict[str, Any], ...],
        *,
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        may_be_cut: bool = False,
    ) -> list[int]:
        """The prompt's tokens; `may_be_cut`: more than fit will do. Raises RequestError."""
        text = self.model.text
        if text.template is None:
            raise RequestError(
                "this model has no chat template, so it cannot take messages",
                hint="put a chat_template.jinja into the model directory and restart",
                param="messages",
            )
        rendered = text.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        if not may_be_cut:
            self.check_length(rendered)
        prompt = await text.tokenizer.encode_async(rendered, add_special_tokens=add_special_tokens)
        if not prompt:
            raise RequestError("the messages render to an empty prompt", param="messages")
        return prompt


def _echo_of(message: Mapping[str, Any]) -> str:
    """The text of a last message that the answer continues: an assistant's."""
    if message["role"] != "assistant":
        return ""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
