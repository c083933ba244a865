"""Log-probabilities of a prompt's tokens, gathered from the chunks in which the engine scores it.

Kept as packed arrays: a long prompt has hundreds of thousands of values.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from hearth.core.errors import EngineError
from hearth.core.request import PromptLogprobs, Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Score:
    """One token of a prompt: what `known` says, and the token's rank (1: the most likely)."""

    token: int
    rank: int
    known: TokenLogprobs


@dataclass(frozen=True, slots=True)
class PromptScores:
    """A whole prompt; the arrays describe its tokens from the second on, `num_top` best each."""

    prompt: tuple[int, ...]
    num_top: int
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    ranks: array[int] = field(default_factory=lambda: array("i"))
    top_tokens: array[int] = field(default_factory=lambda: array("i"))
    top_logprobs: array[float] = field(default_factory=lambda: array("f"))

    @property
    def is_complete(self) -> bool:
        """Whether every token but the first has been scored."""
        return len(self.logprobs) == len(self.prompt) - 1

    def add(self, chunk: PromptLogprobs) -> None:
        """Takes the next chunk in. Raises EngineError when it does not continue the last one."""
        if chunk.start != len(self.logprobs) + 1 or chunk.num_top != self.num_top:
            raise EngineError(
                f"the engine scored the prompt's tokens from {chunk.start} on, "
                f"{len(self.logprobs) + 1} was next"
            )
        self.logprobs.frombytes(chunk.logprobs)
        self.ranks.frombytes(chunk.ranks)
        self.top_tokens.frombytes(chunk.top_tokens)
        self.top_logprobs.frombytes(chunk.top_logprobs)

    def scores(self, num_top: int) -> Iterator[Score]:
        """One a token from the second on, with up to `num_top` of the best, best first."""
        for place, token in enumerate(self.prompt[1:]):
            first = place * self.num_top
            end = first + min(num_top, self.num_top)
            best = zip(self.top_tokens[first:end], self.top_logprobs[first:end], strict=True)
            top = tuple((other, value) for other, value in best if other >= 0)
            yield Score(token, self.ranks[place], TokenLogprobs(self.logprobs[place], top))


def scores_for(request: Request) -> PromptScores | None:
    """An empty collection for a request that asks for its prompt's log-probabilities."""
    num_top = request.sampling.num_prompt_logprobs
    return None if num_top < 0 else PromptScores(request.prompt, num_top)
