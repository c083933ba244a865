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
    """Jobs of one request, and what each answer begins with."""

    request_id: str
    model_name: str
    jobs: tuple[Job, ...]
    echoes: tuple[str, ...]

    @property
    def num_choices(self) -> int:
        """Answers to all prompts together."""
        return sum(job.n for job in self.jobs)


class CompletionService(Pipeline):
    """Completes prompts with one model on one engine."""

    async def prepare(self, call: CompletionCall) -> CompletionJob:
        """Encodes and checks every prompt. Raises RequestError and its kinds, OverloadedError."""
        self.engine.check_room()
        model_name = self.model.resolve_name(call.model)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        jobs: list[Job] = []
        echoes: list[str] = []
        for index, prompt in enumerate(call.prompts):
            tokens = await self._encode(prompt, add_special_tokens=call.add_special_tokens)
            jobs.append(self.job(self._bounded(call, len(tokens)), tokens, f"{request_id}-{index}"))
            echoes.append(self._text_of(prompt) if call.echo else "")
        return CompletionJob(request_id, model_name, tuple(jobs), tuple(echoes))

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
        return AnswerGroup(started, job.echoes)

    async def _encode(self, prompt: Prompt, *, add_special_tokens: bool) -> Sequence[int]:
        tokens: Sequence[int]
        if isinstance(prompt, str):
            self.check_length(prompt)
            tokenizer = self.model.text.tokenizer
            tokens = await tokenizer.encode_async(prompt, add_special_tokens=add_special_tokens)
        else:
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

    def _text_of(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.model.text.tokenizer.decode(prompt)


class AnswerGroup:
    """Running answers of one request. `deltas` is consumed once; `close` frees them all."""

    def __init__(self, answers: Sequence[RunningAnswer], prefixes: Sequence[str]) -> None:
        """`prefixes`: what each answer's text begins with."""
        self._answers = tuple(answers)
        self._prefixes = tuple(prefixes)
        num_before = 0
        firsts: list[int] = []
        for answer in answers:
            firsts.append(num_before)
            num_before += answer.job.n
        self._firsts = tuple(firsts)  # the index of each answer's first choice
        self._num_choices = num_before

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

    async def deltas(self) -> AsyncIterator[Delta]:
        """Text of all choices as it comes, in order within each; each ends with its reason.

        Raises EngineError (or a kind of it) when one of them could not be completed.
        """
        if len(self._answers) == 1:  # as most requests are: without a queue and a task
            async for found in self._deltas_of(0):
                yield found
            return
        news: asyncio.Queue[Delta | BaseException] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._follow(i, news)) for i in range(len(self._answers))]
        num_left = self._num_choices
        try:
            while num_left:
                item = await news.get()
                if isinstance(item, BaseException):
                    raise item
                num_left -= item.finish_reason is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            self.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _deltas_of(self, which: int) -> AsyncIterator[Delta]:
        """One answer's deltas, with the indices of this request's choices."""
        answer, first, prefix = self._answers[which], self._firsts[which], self._prefixes[which]
        if prefix:
            for choice in range(answer.job.n):
                yield Delta(prefix, index=first + choice)
        async for delta in answer.deltas():
            yield replace(delta, index=first + delta.index) if first else delta

    async def _follow(self, which: int, news: asyncio.Queue[Delta | BaseException]) -> None:
        """Hands on one answer's deltas, or the error that ended it."""
        try:
            async for delta in self._deltas_of(which):
                news.put_nowait(delta)
        except Exception as error:  # noqa: BLE001 -- handed to the consumer, who raises it
            news.put_nowait(error)
