"""Chat: from messages to a job of the pipeline. Knows nothing of HTTP.

messages ─ render ─ encode ─ images in the place of their tokens ─▶ Pipeline.job
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hearth.core.errors import RequestError
from hearth.core.units import format_count
from hearth.engine.images.sources import ImageSource
from hearth.serve.engine_port import EnginePort
from hearth.serve.image_prompts import ChatPrompt, placed
from hearth.serve.model import ServedModel
from hearth.serve.pipeline import Call, Pipeline, Room
from hearth.serve.reasoning import OPEN, ends_inside
from hearth.serve.running_answer import Job

if TYPE_CHECKING:
    from hearth.engine.images.loader import ImageLoader


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as a chat template gets them.

    `images`: one for each part {"type": "image"} of the messages, in their order.
    """

    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall(Call):
    """A conversation to go on with; `messages` and `images` as Conversation has them."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageSource, ...] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # go on with the last message instead of answering it
    echo: bool = False  # begin the answer with the last message where it is of the same role


class ChatService(Pipeline):
    """Answers chats with one model on one engine; without a `loader` they have no images."""

    prompt_param = "messages"

    def __init__(
        self,
        engine: EnginePort,
        model: ServedModel,
        *,
        request_timeout_s: float = 0.0,
        room: Room | None = None,
        loader: ImageLoader | None = None,
    ) -> None:
        super().__init__(engine, model, request_timeout_s=request_timeout_s, room=room)
        self._loader = loader

    @property
    def takes_images(self) -> bool:
        """Whether messages may have images."""
        return self._loader is not None

    async def prepare(self, call: ChatCall) -> Job:
        """Renders, encodes, loads images and checks; the job's images are the caller's to close.

        Raises RequestError and its kinds, OverloadedError.
        """
        with self.room.place(call.n):
            return await self._prepare(call)

    async def _prepare(self, call: ChatCall) -> Job:
        self.model.resolve_name(call.model)  # before the work on what may be a long prompt
        if call.images and call.truncate_prompt_tokens is not None:
            raise RequestError(
                "truncate_prompt_tokens is not permitted with images: it could cut one in two",
                hint="leave truncate_prompt_tokens out, or leave the images out",
                param="truncate_prompt_tokens",
            )
        prompt = await self.encode(
            Conversation(call.messages, call.images),
            variables=call.template_variables,
            add_generation_prompt=call.add_generation_prompt,
            continue_final_message=call.continue_final_message,
            may_be_cut=call.truncate_prompt_tokens is not None,
        )
        try:
            echo = _echo_of(call.messages[-1]) if call.echo else ""
            bad_words = await self.words_of(call)
            request_id = f"chatcmpl-{uuid.uuid4().hex}"
            job = self.job(call, prompt.tokens, request_id, echo, bad_words, prompt.images)
            return replace(job, is_reasoning=prompt.is_reasoning and not echo)
        except BaseException:
            prompt.close()
            raise

    async def encode(
        self,
        conversation: Conversation,
        *,
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        may_be_cut: bool = False,
    ) -> ChatPrompt:
        """The prompt; the caller closes it. `may_be_cut`: more than fit will do.

        Raises RequestError, and OverloadedError where images find no room.
        """
        text = self.model.text
        if text.template is None:
            raise RequestError(
                "this model has no chat template, so it cannot take messages",
                hint="put a chat_template.jinja into the model directory and restart",
                param="messages",
            )
        self._check_images(conversation.images)
        rendered = text.template.render(
            conversation.messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        if not may_be_cut:
            self.check_length(rendered)
        prompt = await text.tokenizer.encode_async(rendered, add_special_tokens=add_special_tokens)
        if not prompt:
            raise RequestError("the messages render to an empty prompt", param="messages")
        found = ChatPrompt(prompt)
        if conversation.images:
            found = await self._with_images(prompt, conversation.images)
        is_reasoning = rendered.rstrip().endswith(OPEN)
        if continue_final_message:
            is_reasoning |= ends_inside(_text_of(conversation.messages[-1]))
        return replace(found, is_reasoning=is_reasoning)

    def _check_images(self, images: Sequence[ImageSource]) -> None:
        """Raises RequestError for images that the model does not take, and for too many."""
        if not images:
            return
        if self._loader is None:
            raise RequestError(
                f"{images[0].where}: this model takes no images", param=images[0].where
            )
        limit = self._loader.media.limit_images
        if len(images) > limit:
            raise RequestError(
                f"images in the messages: {format_count(len(images))} (permitted: "
                f"{format_count(limit)})",
                hint="leave older images out, or start the server with a larger --limit-images",
                param=images[limit].where,
            )

    async def _with_images(self, prompt: list[int], sources: Sequence[ImageSource]) -> ChatPrompt:
        """Loads the images and puts them in their places. Raises RequestError, OverloadedError."""
        assert self._loader is not None
        assert self.image_token is not None
        self.image_token.check_count(prompt, len(sources), self.prompt_param)
        loaded = await self._loader.load(sources)
        return placed(prompt, self.image_token, sources, loaded)


def _echo_of(message: Mapping[str, Any]) -> str:
    """The text of a last message that the answer continues: an assistant's."""
    return _text_of(message) if message["role"] == "assistant" else ""


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)
