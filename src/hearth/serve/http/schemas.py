"""The bodies of the HTTP interface, as strict Pydantic models.

Strict: a string is not a number and 1 is not true. Every field of ours carries, as its
description, what is permitted; `errors` puts it into the message when a value is refused.

Validation runs on the event loop, so its work is bounded: a list is left at its first wrong entry
(a megabyte of them would take seconds and gigabytes to describe), and counts have limits.

A few lines over 400: the bodies refer to each other, and are looked up in one place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from hearth.engine.admission import MAX_LOGPROBS
from hearth.models.generation_config import MAX_REPETITION_PENALTY
from hearth.serve.sampling import MAX_SEED

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_MESSAGES = 10_000
MAX_PARTS = 1000
MAX_BIASES = 1024
MAX_BAD_WORDS = 128
MAX_CHOICES = 128
MAX_TIMEOUT_S = 86_400
TIMEOUT_PERMITTED = f"a number of seconds above 0, up to {MAX_TIMEOUT_S}"
# A tag of a union is part of an error's path; this prefix lets `errors` take it out again.
TAG_PREFIX = "~"


class Open(BaseModel):
    """Strict types; unknown fields are kept, to be named in a warning."""

    model_config = ConfigDict(strict=True, extra="allow")


class ContentPart(Open):
    """One part of a content list."""

    type: str = Field(description='"text" or, where the model takes images, "image_url"')
    text: str | None = Field(default=None, description="a string")
    image_url: Any = Field(
        default=None,
        description='{"url": "data:image/png;base64,…", "detail": "auto"}, or the URL alone',
    )


def _content_tag(value: object) -> str | None:
    if isinstance(value, str):
        return f"{TAG_PREFIX}text"
    return f"{TAG_PREFIX}parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag(f"{TAG_PREFIX}text")]
    | Annotated[
        list[ContentPart],
        Field(max_length=MAX_PARTS, fail_fast=True),
        Tag(f"{TAG_PREFIX}parts"),
    ],
    Discriminator(
        _content_tag,
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of parts",
    ),
]


_Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class ChatMessage(Open):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="system, developer, user, assistant or tool"
    )
    content: Content | None = Field(default=None, description="a string or a list of parts")
    name: str | None = Field(default=None, description="a string")
    tool_calls: _Objects | None = Field(default=None, description="a list of objects")
    tool_call_id: str | None = Field(default=None, description="a string")


class StreamOptions(Open):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(default=None, description="true or false")


def _stop_tag(value: object) -> str | None:
    if isinstance(value, str):
        return f"{TAG_PREFIX}one"
    return f"{TAG_PREFIX}many" if isinstance(value, list) else None


_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[_StopString, Tag(f"{TAG_PREFIX}one")]
    | Annotated[
        list[_StopString],
        Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
        Tag(f"{TAG_PREFIX}many"),
    ],
    Discriminator(
        _stop_tag,
        custom_error_type="stop_type",
        custom_error_message="Input should be a string or a list of strings",
    ),
]


_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def few_biases(value: object) -> object:
    """A mapping cannot be left at its first wrong entry, so a large one is not looked at."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"Input should have at most {MAX_BIASES} entries, not {len(value)}")
    return value


LogitBias = Annotated[dict[str, _Bias], BeforeValidator(few_biases)]


class AnswerFields(Open):
    """The fields that chats and completions have in common."""

    model: str | None = Field(default=None, description="the name of a served model")
    stream: bool | None = Field(default=None, description="true or false")
    stream_options: StreamOptions | None = Field(default=None, description="an object")
    max_tokens: int | None = Field(default=None, ge=1, description="an integer, 1 or more")
    temperature: float | None = Field(
        default=None, ge=0, le=2, allow_inf_nan=False, description="a number from 0 to 2"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False, description="a number above 0, up to 1"
    )
    top_k: int | None = Field(
        default=None, ge=-1, lt=2**31, description="an integer, 1 or more; -1 or 0 for all"
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1"
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description=f"an integer from 0 to {MAX_SEED}"
    )
    stop: Stop | None = Field(
        default=None,
        description=f"a string or a list of up to {MAX_STOP_STRINGS} strings, each of 1 to "
        f"{MAX_STOP_CHARS} characters",
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None,
        max_length=MAX_STOP_TOKEN_IDS,
        fail_fast=True,
        description=f"a list of up to {MAX_STOP_TOKEN_IDS} token ids, 0 or more each",
    )
    ignore_eos: bool | None = Field(default=None, description="true or false")
    priority: int | None = Field(
        default=None, ge=-(2**31), lt=2**31, description="an integer; lower goes first"
    )
    timeout: float | None = Field(
        default=None, gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False, description=TIMEOUT_PERMITTED
    )
    n: int | None = Field(
        default=None, ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}"
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, allow_inf_nan=False, description="a number from -2 to 2"
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, allow_inf_nan=False, description="a number from -2 to 2"
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=MAX_REPETITION_PENALTY,
        allow_inf_nan=False,
        description="a number above 0, up to 100",
    )
    logit_bias: LogitBias | None = Field(
        default=None,
        description=f"an object of up to {MAX_BIASES} token ids and numbers from -100 to 100",
    )
    min_tokens: int | None = Field(default=None, ge=0, description="an integer, 0 or more")
    bad_words: list[_StopString] | None = Field(
        default=None,
        max_length=MAX_BAD_WORDS,
        fail_fast=True,
        description=f"a list of up to {MAX_BAD_WORDS} strings, each of 1 to {MAX_STOP_CHARS} "
        "characters",
    )
    include_stop_str_in_output: bool | None = Field(default=None, description="true or false")
    prompt_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description=f"an integer from 0 to {MAX_LOGPROBS}; not with stream",
    )
    truncate_prompt_tokens: int | None = Field(
        default=None,
        ge=-1,
        lt=2**31,
        description="an integer, 1 or more: so many of the prompt's last tokens are kept; -1: as "
        "many as fit",
    )
    echo: bool | None = Field(default=None, description="true or false")


class ChatCompletionRequest(AnswerFields):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description=f"a list of one or more messages, {MAX_MESSAGES} at most",
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="an integer, 1 or more"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="an object with variables of the chat template"
    )
    add_generation_prompt: bool | None = Field(default=None, description="true or false")
    continue_final_message: bool | None = Field(
        default=None, description="true or false; true only with add_generation_prompt false"
    )
    logprobs: bool | None = Field(default=None, description="true or false")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description=f"an integer from 0 to {MAX_LOGPROBS}"
    )
    tools: _Objects | None = Field(default=None, description="a list of objects (not applied yet)")
    tool_choice: Any = Field(default=None, description='"none" or "auto" (not applied yet)')
    response_format: dict[str, Any] | None = Field(
        default=None, description='{"type": "text"} (others are not applied yet)'
    )


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorDetail


class EngineCounts(BaseModel):
    """The engine's own counts: blocks of KV cache now, events since its start."""

    kv_blocks_total: int
    kv_blocks_used: int
    kv_blocks_cached: int
    preemptions: int
    steps: int
    generated_tokens: int
    execute_seconds: float = Field(description="Time inside the kernels.")
    prefix_hit_tokens: int
    drafts: int = Field(description="Of a sequence in a step, by speculation.")
    draft_tokens: int = Field(description="All that were proposed, and verified.")
    accepted_tokens: int = Field(description="Of the drafted ones.")
    images_encoded: int = Field(default=0, description="By the vision encoder.")
    encode_seconds: float = Field(default=0.0, description="Time in the vision encoder.")


class MemoryUse(BaseModel):
    """Of the front end and the engine together."""

    planned_bytes: int = Field(description="By the plan that the server started with.")
    peak_bytes: int = Field(description="Resident at most so far, mapped weights included.")


class Health(BaseModel):
    """Body of GET /health.

    `waiting`, `engine` and `memory` are null when the engine did not answer in time.
    """

    status: Literal["UP", "DOWN"]
    model: str
    executor: str
    kv_cache_dtype: str = Field(description="How keys and values are stored.")
    version: str
    timestamp: str
    running: int
    waiting: int | None
    engine: EngineCounts | None
    memory: MemoryUse | None


class RoundingBody(BaseModel):
    """What codes that were made while the model was loaded lose of the weights' squares: shares.

    `errors` by storage (int4, int8); `worst`: the matrix that lost most.
    """

    errors: dict[str, float]
    worst: str
    worst_error: float


class QualityBody(BaseModel):
    """What the model's quantization costs: as measured (`hearth quality --store`), and `rounding`.

    `perplexity_change` and `same_best_token` are shares, `kl_divergence` is in nats a token. All
    but `rounding` are null where nothing was measured on a text.
    """

    scheme: str | None = None
    method: str | None = None
    reference: str | None = None
    perplexity: float | None = None
    reference_perplexity: float | None = None
    perplexity_change: float | None = None
    perplexity_change_error: float | None = None
    kl_divergence: float | None = None
    kl_divergence_999: float | None = None
    same_best_token: float | None = None
    text: str | None = None
    text_sha256: str | None = None
    num_tokens: int | None = None
    measured_at: str | None = None
    hearth_version: str | None = None
    rounding: RoundingBody | None = None


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hearth"
    root: str
    max_model_len: int
    # Not OpenAI's; not there where nothing is known.
    quality: QualityBody | None = Field(default=None, exclude_if=lambda body: body is None)


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptTokensDetails(BaseModel):
    """Where prompt tokens came from."""

    cached_tokens: int
    # As in vLLM and SGLang; not there where there are no images.
    image_tokens: int | None = Field(default=None, exclude_if=lambda count: count is None)


class UsageBody(BaseModel):
    """Tokens that a request used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class NoticeBody(BaseModel):
    """Something that the request asked for and did not get."""

    code: str
    param: str
    message: str


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    # Only where the server separates it.
    reasoning_content: str | None = Field(default=None, exclude_if=lambda text: text is None)


class TopLogprob(BaseModel):
    """A token that might have stood at a place, and its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that stands there, and the most likely ones, best first."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens, before penalties, biases and temperature."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer and why it ended."""

    index: int = 0
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class PromptLogprob(BaseModel):
    """A token at a place of the prompt: the one that stands there, or one of the most likely."""

    logprob: float
    rank: int
    decoded_token: str


# One entry a token of the prompt, by token id; null for the first, which nothing precedes.
PromptLogprobsBody = list[dict[str, PromptLogprob] | None]


class ChatCompletion(BaseModel):
    """Body of an answer that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: PromptLogprobsBody | None = None
    warnings: list[NoticeBody] | None = None
