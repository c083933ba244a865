"""Log-probabilities in OpenAI's shape for chat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hearth.core.request import TokenLogprobs
from hearth.engine.text.tokenizer import Tokenizer

# Below this a probability is a float's zero; JSON has no infinity. OpenAI's own least value.
LEAST_LOGPROB = -9999.0


def logprobs_body(
    tokenizer: Tokenizer, places: Iterable[tuple[int, TokenLogprobs]]
) -> dict[str, Any]:
    """The `logprobs` of a choice or of a chunk; fields as in schemas.ChoiceLogprobs."""
    content = []
    for token, known in places:
        top = [_entry(tokenizer, other, value) for other, value in known.top]
        content.append({**_entry(tokenizer, token, known.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """`bytes` holds what `token` cannot: a part of a character."""
    raw = tokenizer.token_bytes(token)
    value = max(logprob, LEAST_LOGPROB)
    return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}
