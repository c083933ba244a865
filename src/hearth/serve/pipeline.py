"""The way of every generated answer: from tokens to a submitted request.

Checks everything that needs the model: context, vocabulary, names. Knows nothing of HTTP, nor of
where a prompt comes from: `chat_service` and `completion_service` make the prompts. What comes back
is `running_answer`'s.

    prompt ─ check against the context ─▶ Job ─ submit ─▶ RunningAnswer
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hearth.core.errors import ContextOverflowError, RequestError
from hearth.core.request import Request
from hearth.core.units import format_count
from hearth.serve.engine_port import EnginePort
from hearth.serve.image_prompts import ImageToken, PromptImages
from hearth.serve.model import ServedModel
from hearth.serve.running_answer import Job, RunningAnswer
from hearth.serve.sampling import SamplingChoices, bad_word_tokens, resolve_sampling

BadWords = tuple[tuple[int, ...], ...]  # the tokens of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What every request for an answer may say, checked for types and ranges."""

    model: str | None = None
    sampling: SamplingChoices = field(default_factory=SamplingChoices)
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    bad_words: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    priority: int = 0  # lower goes first
    timeout_s: float | None = None
    arrived: float = field(default_factory=time.monotonic)  # from here the timeout counts
    truncate_prompt_tokens: int | None = None  # keep so many of the last; −1: as many as fit


class Room:
    """The engine's places, with those that requests will need which are being prepared.

    Preparing takes seconds where images are loaded; without this, any number of requests could be
    in it. One for all services of an engine.
    """

    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine
        self._num_preparing = 0

    @contextlib.contextmanager
    def place(self, num_choices: int = 1) -> Iterator[None]:
        """A place while a request is prepared. Raises OverloadedError where there is none."""
        self._engine.check_room(self._num_preparing)
        self._num_preparing += num_choices
        try:
            yield
        finally:
            self._num_preparing -= num_choices


class Pipeline:
    """Checks and submits requests to one engine; the services for prompts build on it.

    `prompt_param` is the field that holds the prompt, for messages. `request_timeout_s` bounds
    every request's time, also of those that ask for more; 0: no bound.
    """

    prompt_param = "prompt"

    def __init__(
        self,
        engine: EnginePort,
        model: ServedModel,
        *,
        request_timeout_s: float = 0.0,
        room: Room | None = None,
    ) -> None:
        self.engine = engine
        self.model = model
        self.request_timeout_s = request_timeout_s
        self.room = room or Room(engine)
        self.image_token = _image_token(model)

    def submit(self, job: Job) -> RunningAnswer:
        """Starts the job; the caller must close what it gets.

        Raises OverloadedError or EngineDeadError.
        """
        return RunningAnswer(self.engine, self.model, job)

    async def words_of(self, call: Call) -> BadWords:
        """The tokens of the call's bad words, for all of its jobs. Raises RequestError.

        In a thread: many long words take 0.1 s.
        """
        if not call.bad_words:
            return ()
        return await asyncio.to_thread(bad_word_tokens, self.model.text.tokenizer, call.bad_words)

    def job(
        self,
        call: Call,
        prompt: Sequence[int],
        request_id: str,
        echo: str = "",
        bad_words: BadWords = (),
        images: PromptImages | None = None,
    ) -> Job:
        """A job for tokens, truncated where the call asks. Raises RequestError and its kinds."""
        model_name = self.model.resolve_name(call.model)
        self.check_token_ids("stop_token_ids", call.stop_token_ids)
        self.check_token_ids("logit_bias", call.sampling.logit_bias)
        kept = self.truncated(call, prompt)
        if images is None and self.image_token is not None:
            self.image_token.check_count(kept, 0, self.prompt_param)
        num_image_tokens = 0 if images is None else images.num_tokens
        stops = call.stop_token_ids | (frozenset() if call.ignore_eos else self._eos)
        request = Request(
            request_id=request_id,
            prompt=tuple(kept),
            max_tokens=self._max_tokens(len(kept), call.max_tokens, num_image_tokens),
            sampling=replace(
                resolve_sampling(call.sampling, self.model.defaults), bad_words=bad_words
            ),
            stop_token_ids=stops,
            priority=call.priority,
            deadline=self.deadline_of(call),
            images=() if images is None else images.inputs,
        )
        self._check_min_tokens(request)
        return Job(
            request,
            model_name,
            call.stop,
            call.include_stop,
            call.n,
            echo,
            num_truncated=len(prompt) - len(kept),
            images=images,
        )

    def truncated(self, call: Call, prompt: Sequence[int]) -> Sequence[int]:
        """The prompt's last tokens, as many as the call wants kept."""
        keep = call.truncate_prompt_tokens
        if keep is None:
            return prompt
        if keep < 0:
            least_answer = 1 if call.max_tokens is None else call.max_tokens
            keep = max(1, self.model.max_model_len - least_answer)
        return prompt[-keep:]

    @property
    def _eos(self) -> frozenset[int]:
        return self.model.stop_token_ids

    def deadline_of(self, call: Call) -> float:
        """The earlier of the client's and the server's, as time.monotonic has it; 0: none."""
        limits = (call.timeout_s or 0.0, self.request_timeout_s)
        timeout_s = min((limit for limit in limits if limit), default=0.0)
        return call.arrived + timeout_s if timeout_s else 0.0

    def check_length(self, text: str) -> None:
        """Refuses what cannot fit, however it is encoded. Raises ContextOverflowError."""
        least = self.model.text.tokenizer.least_tokens(text)
        limit = self.model.max_model_len
        if least >= limit:
            raise ContextOverflowError(
                f"the prompt has {format_count(len(text))} characters, which are "
                f"{format_count(least)} tokens or more, but the context (max_model_len) is "
                f"{format_count(limit)} tokens",
                hint=f"shorten the {self.prompt_param}",
                param=self.prompt_param,
            )

    def check_token_ids(self, param: str, token_ids: Iterable[int]) -> None:
        """Raises RequestError for an id that the model does not have."""
        size = self.model.vocab_size
        outside = next((i for i in token_ids if not 0 <= i < size), None)
        if outside is not None:
            raise RequestError(
                f"{param}: {outside} is outside the vocabulary (permitted: 0 to {size - 1})",
                param=param,
            )

    def _max_tokens(self, num_prompt: int, asked: int | None, num_image_tokens: int = 0) -> int:
        """The answer's bound, resolved against the context. Raises ContextOverflowError.

        `num_image_tokens`: so many of the prompt's tokens stand for images.
        """
        limit = self.model.max_model_len
        room = limit - num_prompt
        needed = 0 if asked == 0 else 1
        if room < needed or (asked is not None and asked > room):
            wanted = "" if asked is None else f" + max_tokens {format_count(asked)}"
            hint = (
                f"shorten the {self.prompt_param} by {format_count(needed - room)} tokens or more"
                if room < needed
                else f"set max_tokens to {format_count(room)} or less, or shorten the "
                f"{self.prompt_param}"
            )
            of_images = ""
            if num_image_tokens:
                of_images = f" ({format_count(num_image_tokens)} of them for images)"
                hint += "; smaller images have fewer tokens"
            raise ContextOverflowError(
                f"the prompt has {format_count(num_prompt)} tokens{of_images}{wanted}, but the "
                f"context (max_model_len) is {format_count(limit)} tokens",
                hint=hint,
                param=self.prompt_param if room < needed else "max_tokens",
            )
        if asked is not None:
            return asked
        # The model's own default never refuses a prompt that fits.
        return min(room, self.model.defaults.max_new_tokens or room)

    def _check_min_tokens(self, request: Request) -> None:
        min_tokens = request.sampling.min_tokens
        if min_tokens > request.max_tokens:
            raise RequestError(
                f"min_tokens is {format_count(min_tokens)}, permitted are 0 to "
                f"{format_count(request.max_tokens)}, the most tokens that this answer can have",
                hint=f"lower min_tokens, raise max_tokens or shorten the {self.prompt_param}",
                param="min_tokens",
            )


def _image_token(model: ServedModel) -> ImageToken | None:
    """The token that stands for images; None: the model takes none."""
    if model.images is None:
        return None
    token_id = model.images.token_id
    return ImageToken(token_id, model.text.tokenizer.token_text(token_id) or f"of id {token_id}")
