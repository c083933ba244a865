"""A running answer: from token events to text, one stream a choice, merged with their indices.

Owns the one terminal event of a choice: it ends with the engine's own event, with a stop string
(the engine's request is then cancelled, and usage counts up to the stop), or with an error, which
ends the whole answer. Knows nothing of HTTP.

    TokenEvent ─ detokenize ─ stop strings ─▶ Delta
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from hearth.core.errors import (
    ContextOverflowError,
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    HearthError,
    OverloadedError,
    RequestError,
)
from hearth.core.request import FinishReason, Request, TokenEvent, TokenLogprobs
from hearth.engine.text.stop import StopMatcher
from hearth.serve.engine_port import EnginePort
from hearth.serve.image_prompts import PromptImages
from hearth.serve.merge import merged
from hearth.serve.model import ServedModel
from hearth.serve.prompt_scores import PromptScores, scores_for


@dataclass(frozen=True, slots=True)
class Job:
    """A request that fits the context and can be submitted; `request` is that of choice 0.

    `echo`: what every answer begins with. `num_truncated`: tokens that were left out at the
    prompt's beginning, because the call asked for it. `images`: those of the prompt, which whoever
    runs the job keeps until its last choice has ended. `is_reasoning`: the prompt ends within the
    answer's reasoning.
    """

    request: Request
    model_name: str
    stop: tuple[str, ...]
    include_stop: bool = False
    n: int = 1
    echo: str = ""
    num_truncated: int = 0
    images: PromptImages | None = None
    is_reasoning: bool = False

    def request_of(self, choice: int) -> Request:
        """The request of one choice; those after the first share its prompt's blocks and scores."""
        first = self.request
        if choice == 0:
            return first
        request_id = f"{first.request_id}-{choice}"
        return replace(
            first,
            request_id=request_id,
            choice=choice,
            follows=first.request_id,
            sampling=replace(first.sampling, num_prompt_logprobs=-1),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all choices so far; those after a stop string do not count."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    num_image_tokens: int = 0  # of the prompt's


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a choice; its last delta has a finish reason ("stop" or "length").

    `logprobs`: (token, its log-probabilities), where the request asks; they may come before their
    text, which waits for whole characters and for the end of what may become a stop string.
    `prompt_scores`: of the whole prompt, in the first delta of each choice where the request asks;
    its text is what the answer echoes.
    """

    text: str
    finish_reason: str | None = None
    index: int = 0
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    prompt_scores: PromptScores | None = None


class RunningAnswer:
    """A submitted job. `deltas` is consumed once; `close` frees the engine's sequences and images.

    Images live until the last choice has had its terminal event, and are given back at the latest
    by `close`.
    """

    def __init__(self, engine: EnginePort, model: ServedModel, job: Job) -> None:
        """Raises what the engine's `submit` raises; then none of the choices runs."""
        self.job = job
        self._choices: list[_RunningChoice] = []
        try:
            for choice in range(job.n):
                self._choices.append(_RunningChoice(engine, model, job, choice))
        except HearthError:
            self.close()
            raise

    @property
    def usage(self) -> Usage:
        """Counts so far, the prompt once; final once `deltas` has ended."""
        return Usage(
            len(self.job.request.prompt),
            sum(choice.num_completion for choice in self._choices),
            self._choices[0].num_cached,
            self.job.images.num_tokens if self.job.images is not None else 0,
        )

    def close(self) -> None:
        """Cancels the engine's requests that have not ended. May be called twice."""
        for choice in self._choices:
            choice.close()
        if self.job.images is not None:
            self.job.images.close()

    def deltas(self) -> AsyncIterator[Delta]:
        """Text as it comes, then one delta with the finish reason, for every choice.

        Raises EngineError (or a kind of it) when the engine could not complete a choice.
        """
        deltas = merged([choice.deltas() for choice in self._choices])
        if self.job.request.sampling.num_prompt_logprobs >= 0:
            return self._after_scores(deltas)
        return self._after_echo(deltas) if self.job.echo else deltas

    async def _after_echo(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        for choice in range(self.job.n):
            yield Delta(self.job.echo, index=choice)
        async for delta in deltas:
            yield delta

    async def _after_scores(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
        """Every choice begins with the scores, which come with the first one's news."""
        held: list[Delta] | None = []  # that came before the scores
        async for delta in deltas:
            if held is None:
                yield delta
            elif delta.prompt_scores is None:
                held.append(delta)
            else:
                for choice in range(self.job.n):
                    yield replace(delta, text=self.job.echo, index=choice)
                for one in held:
                    yield one
                held = None


class _RunningChoice:
    """One request of the engine, and its text."""

    def __init__(self, engine: EnginePort, model: ServedModel, job: Job, choice: int) -> None:
        self._engine = engine
        self._request = job.request_of(choice)
        self._index = choice
        self._include_stop = job.include_stop
        self._min_tokens = self._request.sampling.min_tokens
        self._detokenizer = model.text.tokenizer.detokenizer()
        self._matcher = StopMatcher(job.stop)
        self._scores = scores_for(self._request)
        self.num_completion = 0
        self.num_cached = 0
        self._is_ended = False
        self._events = engine.submit(self._request)

    def close(self) -> None:
        """Cancels the engine's request unless it has ended."""
        if not self._is_ended:
            self._is_ended = True
            self._engine.cancel(self._request.request_id)

    async def deltas(self) -> AsyncIterator[Delta]:
        """See RunningAnswer."""
        scores = self._scores
        try:
            if scores is not None and scores.is_complete:  # a single token: there is nothing to say
                yield Delta("", None, self._index, prompt_scores=scores)
            async for event in self._events:
                if scores is not None and event.prompt_logprobs is not None:
                    scores.add(event.prompt_logprobs)
                    if scores.is_complete:
                        yield Delta("", None, self._index, prompt_scores=scores)
                delta = self._take(event)
                if delta.text or delta.logprobs or delta.finish_reason is not None:
                    yield delta
                if delta.finish_reason is not None:
                    return
            raise EngineError("the engine ended a request without a terminal event")
        finally:
            self.close()

    def _take(self, event: TokenEvent) -> Delta:
        self.num_cached = max(self.num_cached, event.num_cached_tokens)
        num_before = self.num_completion
        text = self._text_of(event.tokens)
        num_taken = self.num_completion - num_before
        logprobs = tuple(zip(event.tokens[:num_taken], event.logprobs, strict=False))
        if self._matcher.matched is not None:
            # An event may bring the stop string and the engine's own end together.
            self._is_ended = event.finish_reason is not None
            text += self._matcher.matched if self._include_stop else ""
            return Delta(text, "stop", self._index, logprobs)
        if event.finish_reason is None:
            return Delta(text, None, self._index, logprobs)
        self._is_ended = True
        if event.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            raise _error_of(event)
        text += self._rest(event.stop_token)
        return Delta(text, event.finish_reason.value, self._index, logprobs)

    def _rest(self, stop_token: int | None) -> str:
        """What was withheld; the end of a half character cannot complete a stop string."""
        text = ""
        if stop_token is not None:
            self.num_completion += 1
            if self._include_stop:
                text = self._detokenizer.feed((stop_token,))
        return self._matcher.feed(text + self._detokenizer.flush()) + self._matcher.flush()

    def _text_of(self, tokens: tuple[int, ...]) -> str:
        """Decodes token by token, so that tokens after a stop string are not counted.

        As in vLLM, text of the first `min_tokens` tokens is not searched for stop strings.
        """
        text = ""
        for token in tokens:
            self.num_completion += 1
            piece = self._detokenizer.feed((token,))
            if self.num_completion <= self._min_tokens:
                text += piece
                continue
            text += self._matcher.feed(piece)
            if self._matcher.matched is not None:
                break
        return text


def _error_of(event: TokenEvent) -> HearthError:
    """The error of the tree that a terminal event stands for."""
    message = event.message or "the request was cancelled"
    kinds = (
        EngineDeadError,
        OverloadedError,
        DeadlineExceededError,
        ContextOverflowError,
        RequestError,
    )
    kind = next((kind for kind in kinds if kind.code == event.error_code), EngineError)
    return kind(message)
