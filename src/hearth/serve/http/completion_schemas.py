"""The bodies of plain completions and of the tokenizer's endpoints; see `schemas` for the rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from hearth.engine.admission import MAX_LOGPROBS
from hearth.serve.http.schemas import (
    MAX_MESSAGES,
    TAG_PREFIX,
    AnswerFields,
    ChatMessage,
    NoticeBody,
    Open,
    PromptLogprobsBody,
    UsageBody,
)

MAX_PROMPTS = 1024
_TokenId = Annotated[int, Field(ge=0)]


def _prompt_tag(value: object) -> str | None:
    if isinstance(value, str):
        return f"{TAG_PREFIX}text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    kinds = {str: "texts", int: "tokens", list: "lists"}
    return f"{TAG_PREFIX}{kinds.get(type(first), 'texts')}"


Prompt = Annotated[
    Annotated[str, Tag(f"{TAG_PREFIX}text")]
    | Annotated[
        list[str],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        Tag(f"{TAG_PREFIX}texts"),
    ]
    | Annotated[list[_TokenId], Field(fail_fast=True), Tag(f"{TAG_PREFIX}tokens")]
    | Annotated[
        list[Annotated[list[_TokenId], Field(fail_fast=True)]],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        Tag(f"{TAG_PREFIX}lists"),
    ],
    Discriminator(
        _prompt_tag,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a string, a list of strings or lists of token ids",
    ),
]


class CompletionRequest(AnswerFields):
    """Body of POST /v1/completions."""

    prompt: Prompt = Field(
        description="a string, a list of strings, a list of token ids, or a list of such lists; "
        f"up to {MAX_PROMPTS} prompts"
    )
    max_tokens: int | None = Field(default=None, ge=0, description="an integer, 0 or more")
    add_special_tokens: bool | None = Field(default=None, description="true or false")
    suffix: str | None = Field(default=None, description="nothing: infilling is not supported")
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description=f"an integer from 0 to {MAX_LOGPROBS}"
    )


class CompletionLogprobs(BaseModel):
    r"""Log-probabilities of a completion's tokens, those of an echoed prompt before them.

    `top_logprobs`: the token and the most likely ones; null, like `token_logprobs`, for the first
    token of a prompt. `text_offset`: characters of `text` before each token's own. A token that is
    a part of a character is written as OpenAI does, `bytes:\xe6\x98`.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer and why it ended."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: PromptLogprobsBody | None = None


class Completion(BaseModel):
    """Body of an answer that is not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    warnings: list[NoticeBody] | None = None


class TokenizeRequest(Open):
    """Body of POST /tokenize: a prompt, or messages as the chat endpoint would render them."""

    model: str | None = Field(default=None, description="the name of a served model")
    prompt: str | None = Field(default=None, description="a string")
    messages: list[ChatMessage] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description=f"a list of one or more messages, {MAX_MESSAGES} at most",
    )
    add_special_tokens: bool | None = Field(
        default=None, description="true or false; true for a prompt, false for messages"
    )
    add_generation_prompt: bool | None = Field(default=None, description="true or false")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="an object with variables of the chat template"
    )
    return_token_strs: bool | None = Field(default=None, description="true or false")


class TokenizeResponse(BaseModel):
    """Tokens of a text, and the context that they would have to fit."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Open):
    """Body of POST /detokenize."""

    model: str | None = Field(default=None, description="the name of a served model")
    tokens: list[_TokenId] = Field(fail_fast=True, description="a list of token ids")


class DetokenizeResponse(BaseModel):
    """The text of tokens, special ones included."""

    prompt: str


class Version(BaseModel):
    """Body of GET /version."""

    version: str
