"""From the body of a chat request to a ChatCall, and to the notices about what is not applied.

Three kinds of fields do not lead to what they ask for: those that would make the answer wrong in
shape (refused), those that come later (a notice), and those that nobody knows (a notice).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from hearth.core.errors import RequestError
from hearth.core.units import format_count
from hearth.engine.images.sources import ImageSource
from hearth.serve.chat_service import ChatCall, Conversation
from hearth.serve.http.image_parts import IMAGE_PARTS, PERMITTED, image_of
from hearth.serve.http.schemas import AnswerFields, ChatCompletionRequest, ChatMessage, ContentPart
from hearth.serve.notices import (
    IGNORED_FIELD,
    OVERRIDDEN_FIELD,
    TRUNCATED_PROMPT,
    UNKNOWN_FIELD,
    Notice,
)
from hearth.serve.sampling import SamplingChoices

# Fields that are not applied yet, with the values that ask for nothing.
_LATER: Mapping[str, tuple[object, ...]] = {
    "length_penalty": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None, True, False),  # says nothing without tools
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True, False),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "metadata": (None, {}),
}
# Names come from the client: so many are named one by one, in so many characters.
MAX_UNKNOWN_FIELDS = 20
MAX_NAME_CHARS = 64
MAX_ID_DIGITS = 10

# Fields about accounting elsewhere; an answer is the same with and without them.
_WITHOUT_EFFECT = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
)
# Variables of a chat template that have fields of their own.
_OWN_VARIABLES = frozenset({"messages", "add_generation_prompt"})
_TEXT_PART = '{"type": "text", "text": "…"}'
_MEDIA_PARTS = {
    "video_url": "video",
    "video": "video",
    "input_audio": "audio",
    "audio_url": "audio",
    "file": "file",
}


def call_of(body: ChatCompletionRequest, *, takes_images: bool = False) -> ChatCall:
    """The call that the body asks for. Raises RequestError for what cannot be answered."""
    _refuse_other_chats(body)
    max_tokens = body.max_completion_tokens
    conversation = conversation_of(body.messages, takes_images=takes_images)
    return ChatCall(
        messages=conversation.messages,
        images=conversation.images,
        model=body.model,
        sampling=sampling_of(
            body,
            num_logprobs=(body.top_logprobs or 0) if body.logprobs else -1,
            num_prompt_logprobs=given_or_none(body.prompt_logprobs),
        ),
        max_tokens=body.max_tokens if max_tokens is None else max_tokens,
        n=body.n or 1,
        stop=stops_of(body),
        include_stop=bool(body.include_stop_str_in_output),
        bad_words=tuple(body.bad_words or ()),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        priority=body.priority or 0,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        template_variables=body.chat_template_kwargs or {},
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        echo=bool(body.echo),
    )


def conversation_of(messages: Sequence[ChatMessage], *, takes_images: bool) -> Conversation:
    """The messages as the chat template gets them, and their images. Raises RequestError."""
    found: list[dict[str, Any]] = []
    images: list[ImageSource] = []
    for index, message in enumerate(messages):
        found.append(_message_of(index, message, takes_images, images))
    return Conversation(tuple(found), tuple(images))


def given_or_none(num_logprobs: int | None) -> int:
    """How many log-probabilities are asked for; −1: none, not even those of the tokens."""
    return -1 if num_logprobs is None else num_logprobs


def truncation_notices(num_truncated: int) -> list[Notice]:
    """What a truncated prompt has lost, in one notice at most."""
    if num_truncated == 0:
        return []
    message = f"the prompt's first {format_count(num_truncated)} tokens were left out, as asked"
    return [Notice(TRUNCATED_PROMPT, "truncate_prompt_tokens", message)]


def sampling_of(
    body: AnswerFields, num_logprobs: int = -1, num_prompt_logprobs: int = -1
) -> SamplingChoices:
    """What the body says about sampling."""
    return SamplingChoices(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_biases_of(body.logit_bias or {}),
        min_tokens=body.min_tokens,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
    )


def _biases_of(biases: Mapping[str, float]) -> dict[int, float]:
    """Token id → bias. Raises RequestError for a key that is no token id."""
    found: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_ID_DIGITS):
            raise RequestError(
                f"logit_bias: {_shown_name(key)} is not a token id (permitted: an object of token "
                "ids and numbers from -100 to 100)",
                param="logit_bias",
            )
        found[int(key)] = bias
    return found


def stops_of(body: AnswerFields) -> tuple[str, ...]:
    """The stop strings, one or several."""
    stop = body.stop
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def notices_of(body: ChatCompletionRequest) -> list[Notice]:
    """What the body asks for and does not get."""
    notices = field_notices(body)
    if body.echo and body.messages[-1].role != "assistant":
        message = "echo repeats a last message of the assistant's; there is none"
        notices.append(Notice(IGNORED_FIELD, "echo", message))
    for name in _OWN_VARIABLES & set(body.chat_template_kwargs or ()):
        message = f"chat_template_kwargs: {name} was overridden by the request's own field"
        notices.append(Notice(OVERRIDDEN_FIELD, f"chat_template_kwargs.{name}", message))
    limits = (body.max_tokens, body.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        notices.append(
            Notice(
                OVERRIDDEN_FIELD,
                "max_tokens",
                f"max_tokens {limits[0]} was overridden by max_completion_tokens {limits[1]}",
            )
        )
    return notices


def field_notices(body: AnswerFields) -> list[Notice]:
    """Fields that are not applied, in the body's order."""
    notices: list[Notice] = []
    unknown: list[str] = []
    extra = body.model_extra or {}
    for name in [*type(body).model_fields, *extra]:
        value = extra.get(name) if name in extra else getattr(body, name)
        if name in _LATER:
            if value not in _LATER[name]:
                notices.append(_ignored(name, value))
        elif name in extra and name not in _WITHOUT_EFFECT and not _is_shape(name):
            unknown.append(name)
    options = body.stream_options.model_extra if body.stream_options else None
    unknown.extend(f"stream_options.{name}" for name in options or ())
    return [*notices, *_unknown(unknown)]


def _ignored(name: str, value: object) -> Notice:
    shown = json.dumps(value, ensure_ascii=False)
    shown = _printable(shown if len(shown) <= 60 else f"{shown[:57]}...")
    return Notice(IGNORED_FIELD, name, f"{name} {shown} is not applied by this version of hearth")


def _unknown(names: list[str]) -> list[Notice]:
    """One notice a field, as long as there are few."""
    notices = [
        Notice(UNKNOWN_FIELD, name, f"{name} is not a field of this endpoint and was ignored")
        for name in map(_shown_name, names[:MAX_UNKNOWN_FIELDS])
    ]
    if (more := len(names) - MAX_UNKNOWN_FIELDS) > 0:
        notices.append(Notice(UNKNOWN_FIELD, "", f"{more} more unknown fields were ignored"))
    return notices


def _shown_name(name: str) -> str:
    """A client's name as it may stand in a log: one line, short, nothing for a terminal to obey."""
    return _printable(name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 3]}...")


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _is_shape(name: str) -> bool:
    return name in ("modalities", "audio", "best_of", "use_beam_search")


def refuse_other_shapes(body: AnswerFields) -> None:
    """Raises RequestError for fields whose answer would have another shape."""
    extra = body.model_extra or {}
    if (extra.get("best_of") or 1) not in (1, body.n or 1) or extra.get("use_beam_search"):
        name = "use_beam_search" if extra.get("use_beam_search") else "best_of"
        raise RequestError(
            f"{name}: choosing among more answers than are sent is not supported",
            hint="leave it out; n gives several answers",
            param=name,
        )
    if extra.get("audio") or extra.get("modalities") not in (None, [], ["text"]):
        raise RequestError(
            'modalities: answers other than text are not supported (permitted: ["text"])',
            param="modalities",
        )
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError(
            "prompt_logprobs is permitted only without stream",
            hint="leave stream out; for /v1/completions, echo with logprobs can be streamed",
            param="prompt_logprobs",
        )
    if body.truncate_prompt_tokens == 0:
        raise RequestError(
            "truncate_prompt_tokens is 0, which leaves no prompt (permitted: 1 or more, or -1 for "
            "as many as fit)",
            param="truncate_prompt_tokens",
        )
    if body.stream_options is not None and not body.stream:
        raise RequestError(
            "stream_options is permitted only with stream: true",
            hint="set stream to true, or leave stream_options out",
            param="stream_options",
        )


def _refuse_other_chats(body: ChatCompletionRequest) -> None:
    """Raises RequestError for chats that need more than text."""
    refuse_other_shapes(body)
    choice = body.tool_choice
    if body.top_logprobs and not body.logprobs:
        raise RequestError(
            "top_logprobs is permitted only with logprobs: true",
            hint="set logprobs to true, or leave top_logprobs out",
            param="top_logprobs",
        )
    if body.continue_final_message and body.add_generation_prompt is not False:
        raise RequestError(
            "continue_final_message goes on with the last message, add_generation_prompt begins a "
            "new one (permitted: one of them)",
            hint="send add_generation_prompt: false",
            param="continue_final_message",
        )
    if choice is not None and choice not in ("none", "auto"):
        raise RequestError(
            f"tool_choice {json.dumps(choice)} demands a tool call, which is not supported yet "
            '(permitted: "none", "auto")',
            param="tool_choice",
        )


def _message_of(
    index: int, message: ChatMessage, takes_images: bool, images: list[ImageSource]
) -> dict[str, Any]:
    """The message as the chat template gets it: fields that are not given are absent.

    Its images are added to `images`.
    """
    given = message.model_dump(exclude_none=True)
    content = message.content
    where = f"messages.{index}.content"
    if isinstance(content, list):
        parts = enumerate(content)
        given["content"] = [_part_of(f"{where}.{i}", p, takes_images, images) for i, p in parts]
    elif content is None:
        if message.role != "assistant" or not message.tool_calls:
            raise RequestError(
                f"{where}: a message of role {message.role!r} needs content "
                "(permitted: a string or a list of parts)",
                param=where,
            )
        given["content"] = ""
    if message.tool_calls:
        given["tool_calls"] = [_tool_call_of(call) for call in message.tool_calls]
    return given


def _part_of(
    where: str, part: ContentPart, takes_images: bool, images: list[ImageSource]
) -> dict[str, str]:
    permitted = _TEXT_PART + (f" and {PERMITTED}" if takes_images else "")
    if part.type in IMAGE_PARTS and not takes_images:
        raise RequestError(
            f"{where}: this model takes no images (permitted: {permitted})",
            hint="send text only, or serve a model that takes images",
            param=where,
        )
    if part.type in IMAGE_PARTS:
        images.append(image_of(where, part))
        return {"type": "image"}
    if part.type in _MEDIA_PARTS:
        raise RequestError(
            f"{where}: {_MEDIA_PARTS[part.type]} parts are not supported yet "
            f"(permitted: {permitted})",
            hint="leave the part out",
            param=where,
        )
    if part.type not in ("text", "input_text"):
        raise RequestError(
            f"{where}.type: {part.type!r} is not a kind of content part (permitted: {permitted})",
            param=f"{where}.type",
        )
    if part.text is None:
        raise RequestError(
            f"{where}.text: a text part needs its text (permitted: a string)", param=f"{where}.text"
        )
    return {"type": "text", "text": part.text}


def _tool_call_of(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI writes arguments as a JSON string; chat templates expect the object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        # Not the standard library's: it recurses without a limit and lets lone surrogates in.
        arguments = from_json(function["arguments"] or "{}")
    except ValueError:
        return call  # the template prints it as the text it is
    return {**call, "function": {**function, "arguments": arguments}}
