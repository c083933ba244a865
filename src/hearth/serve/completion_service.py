"""Plain completions: from prompts to jobs, and several answers to one request side by side.

Knows nothing of HTTP. A request with several prompts is a list of jobs, of n choices each, in the
order of its choices' indices; `AnswerGroup` runs them as one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from hearth.core.errors import RequestError
from hearth.serve.merge import merged
from hearth.serve.pipeline import Call, Pipeline
from hearth.serve.running_answer import Delta, Job, RunningAnswer, Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's
Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall(Call):
    """Texts or tokens to go on from; `echo` puts each before its answer."""

    prompts: tuple[Prompt, ...]
    echo: bool = False
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class CompletionJob:
    """Jobs of one request."""

    request_id: str
    model_name: str
    jobs: tuple[Job, ...]

    @property
    def num_choices(self) -> int:
        """Answers to all prompts together."""
        return sum(job.n for job in self.jobs)

    @property
    def num_truncated(self) -> int:
        """Tokens that were left out of all prompts together."""
        return sum(job.num_truncated for job in self.jobs)


class CompletionService(Pipeline):
    """Completes prompts with one model on one engine."""

    async def prepare(self, call: CompletionCall) -> CompletionJob:
        """Encodes and checks every prompt. Raises RequestError and its kinds, OverloadedError."""
        with self.room.place(call.n * len(call.prompts)):
            return await self._prepare(call)

    async def _prepare(self, call: CompletionCall) -> CompletionJob:
        model_name = self.model.resolve_name(call.model)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        bad_words = await self.words_of(call)
        jobs: list[Job] = []
        for index, prompt in enumerate(call.prompts):
            if index:
                await asyncio.sleep(0)  # a thousand prompts take a second: others come between
            tokens = await self._encode(call, prompt)
            bounded = self._bounded(call, len(self.truncated(call, tokens)))
            echo = self._echo_of(call, prompt, tokens) if call.echo else ""
            jobs.append(self.job(bounded, tokens, f"{request_id}-{index}", echo, bad_words))
        return CompletionJob(request_id, model_name, tuple(jobs))

    def submit_all(self, job: CompletionJob) -> AnswerGroup:
        """Starts all jobs or none; the caller must close what it gets.

        Raises OverloadedError or EngineDeadError.
        """
        started: list[RunningAnswer] = []
        try:
            for one in job.jobs:
                started.append(self.submit(one))  # noqa: PERF401 -- those before a failure are closed
        except BaseException:
            for answer in started:
                answer.close()
            raise
        return AnswerGroup(started)

    async def _encode(self, call: CompletionCall, prompt: Prompt) -> Sequence[int]:
        tokens: Sequence[int]
        if isinstance(prompt, str):
            if call.truncate_prompt_tokens is None:
                self.check_length(prompt)
            tokens = await self.model.text.tokenizer.encode_async(
                prompt, add_special_tokens=call.add_special_tokens
            )
        else:
            if len(prompt) > self.model.max_model_len and call.truncate_prompt_tokens is None:
                self._max_tokens(len(prompt), call.max_tokens)  # before each of them is looked at
            self.check_token_ids("prompt", prompt)
            tokens = prompt
        if not tokens:
            raise RequestError(
                "the prompt has no tokens (permitted: one or more)",
                hint="write at least one character",
                param="prompt",
            )
        return tokens

    def _bounded(self, call: CompletionCall, num_prompt: int) -> CompletionCall:
        """OpenAI's short default, or less where the context ends before it."""
        if call.max_tokens is not None:
            return call
        room = self.model.max_model_len - num_prompt
        return replace(call, max_tokens=max(1, min(DEFAULT_MAX_TOKENS, room)))

    def _echo_of(self, call: CompletionCall, prompt: Prompt, tokens: Sequence[int]) -> str:
        """The prompt as it was sent, or the text of what truncation leaves of it."""
        kept = self.truncated(call, tokens)
        if isinstance(prompt, str) and len(kept) == len(tokens):
            return prompt
        return self.model.text.tokenizer.decode(kept)


class AnswerGroup:
    """Running answers of one request. `deltas` is consumed once; `close` frees them all."""

    def __init__(self, answers: Sequence[RunningAnswer]) -> None:
        self._answers = tuple(answers)
        num_before = 0
        firsts: list[int] = []
        for answer in answers:
            firsts.append(num_before)
            num_before += answer.job.n
        self._firsts = tuple(firsts)  # the index of each answer's first choice

    @property
    def usage(self) -> Usage:
        """The sum over all answers so far."""
        found = [answer.usage for answer in self._answers]
        return Usage(
            sum(usage.num_prompt_tokens for usage in found),
            sum(usage.num_completion_tokens for usage in found),
            sum(usage.num_cached_tokens for usage in found),
        )

    def close(self) -> None:
        """Cancels what has not ended. May be called twice."""
        for answer in self._answers:
            answer.close()

    def deltas(self) -> AsyncIterator[Delta]:
        """Text of all choices as it comes, in order within each; each ends with its reason.

        Raises EngineError (or a kind of it) when one of them could not be completed.
        """
        pairs = zip(self._answers, self._firsts, strict=True)
        return merged([_renumbered(answer.deltas(), first) for answer, first in pairs])


async def _renumbered(deltas: AsyncIterator[Delta], first: int) -> AsyncIterator[Delta]:
    """One answer's deltas with the indices of the request's choices."""
    async for delta in deltas:
        yield replace(delta, index=first + delta.index) if first else delta
