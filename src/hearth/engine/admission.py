"""What a request must satisfy before it is queued.

The last guard before memory is indexed by a token id or sized by a count: the HTTP layer checks the
same with better words, but a request may come from elsewhere.
"""

from __future__ import annotations

import math

from hearth.core.config import SchedulerConfig
from hearth.core.errors import ContextOverflowError, OverloadedError, RequestError
from hearth.core.request import Request
from hearth.core.units import format_count

# Most best tokens a place: OpenAI's bound on top_logprobs.
MAX_LOGPROBS = 20


def check_queue(num_requests: int, config: SchedulerConfig) -> None:
    """Raises OverloadedError where as many requests run or wait as may."""
    bound = config.max_num_seqs + config.max_queued_requests
    if num_requests >= bound:
        message = f"{bound} requests are running or queued, the limit"
        raise OverloadedError(message, hint="retry later")


def validate_request(request: Request, *, max_model_len: int, vocab_size: int) -> None:
    """Raises RequestError or ContextOverflowError when the request cannot be run as it stands."""
    if not request.prompt:
        raise RequestError("the prompt has no tokens", param="prompt")
    if request.max_tokens < 0:
        raise RequestError(
            f"max_tokens is {request.max_tokens}, it must be at least 0", param="max_tokens"
        )
    num_known = len(request.prompt) + len(request.generated)
    least_answer = min(request.max_tokens, 1)
    if len(request.prompt) + least_answer > max_model_len or num_known > max_model_len:
        raise ContextOverflowError(
            f"the prompt has {format_count(num_known)} tokens, which leaves no room for an answer "
            f"in a context of {format_count(max_model_len)}",
            hint="shorten the prompt or raise --max-model-len",
            param="prompt",
        )
    # With min_tokens, a stop token outside would be refused with the step and all that are in it.
    ids = {"prompt": request.prompt, "stop_token_ids": request.stop_token_ids}
    for param, tokens in (*ids.items(), ("prompt", request.generated)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            raise RequestError(
                f"token ids must be from 0 to {format_count(vocab_size - 1)} (the vocabulary)",
                param=param,
            )
    _validate_images(request)
    _validate_sampling(request, vocab_size)


def _validate_images(request: Request) -> None:
    """Tokens of images lie within the prompt, one image behind the other, as many as their grid."""
    end = 0
    for image in request.images:
        merged = image.grid_height * image.grid_width // max(1, image.num_tokens)
        side = math.isqrt(merged)
        is_whole = side * side == merged and side > 0
        if (
            image.first_token < end
            or image.num_tokens < 1
            or not is_whole
            or image.num_tokens * merged != image.grid_height * image.grid_width
            or image.grid_height % side
            or image.grid_width % side
        ):
            raise RequestError("the images do not fit the prompt", param="messages")
        end = image.first_token + image.num_tokens
    if end > len(request.prompt):
        raise RequestError("an image lies behind the prompt's end", param="messages")


def _validate_sampling(request: Request, vocab_size: int) -> None:
    """Ranges as SamplingParams states them; a NaN fails every comparison."""
    sampling = request.sampling
    in_range = {
        "temperature": 0 <= sampling.temperature <= 1e6,
        "top_p": 0 < sampling.top_p <= 1,
        "top_k": 0 <= sampling.top_k < 1 << 31,
        "min_p": 0 <= sampling.min_p <= 1,
        "seed": 0 <= sampling.seed < 1 << 64,
        "frequency_penalty": math.isfinite(sampling.frequency_penalty),
        "presence_penalty": math.isfinite(sampling.presence_penalty),
        "repetition_penalty": 0 < sampling.repetition_penalty < math.inf,
        "min_tokens": 0 <= sampling.min_tokens <= request.max_tokens,
        "num_logprobs": -1 <= sampling.num_logprobs <= MAX_LOGPROBS,
        "num_prompt_logprobs": -1 <= sampling.num_prompt_logprobs <= MAX_LOGPROBS,
        "logit_bias": _is_bias(sampling.logit_bias, vocab_size),
        "bad_words": all(
            word and min(word) >= 0 and max(word) < vocab_size for word in sampling.bad_words
        ),
    }
    for name, is_valid in in_range.items():
        if not is_valid:
            raise RequestError(f"{name} is {getattr(sampling, name)}, out of range", param=name)
    if not 0 <= request.choice < 1 << 31:
        raise RequestError(f"choice is {request.choice}, out of range", param="n")


def _is_bias(logit_bias: tuple[tuple[int, float], ...], vocab_size: int) -> bool:
    """Tokens of the vocabulary, each once, with finite biases."""
    tokens = {token for token, _ in logit_bias}
    return len(tokens) == len(logit_bias) and all(
        0 <= token < vocab_size and math.isfinite(bias) for token, bias in logit_bias
    )
