"""The real engine over a model that sees: requests with images in, tokens and logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.support.engines import EngineSizes
from tests.support.executors import Setup, build_executor
from tests.support.hf_models import NUM_NEW_TOKENS
from tests.support.vision_models import (
    MERGE,
    PATCH,
    ExpectedVision,
    Picture,
    image_input,
)

from hearth.core.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.images import ImageInput, ImageProcessorSpec
from hearth.core.program import StepProgram
from hearth.core.request import FinishReason, Request, SamplingParams
from hearth.core.spec import ModelSpec
from hearth.core.step import (
    Executor,
    ExecutorInfo,
    ImageEncoder,
    KvConfig,
    StepLimits,
    StepPlan,
    StepResult,
)
from hearth.engine.encoding import Encoding
from hearth.engine.engine import Engine, EngineShape
from hearth.engine.images.patches import patch_rows
from hearth.models.image_sizes import CLIP_MEAN, CLIP_STD
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.lower import lower

PROCESSOR = ImageProcessorSpec(
    min_pixels=1,
    max_pixels=1 << 20,
    frames=2,
    patch_size=PATCH,
    temporal_patch_size=2,
    merge_size=MERGE,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
MAX_PATCHES = 200


class Recorder:
    """An executor that keeps the logits of every row, by (sequence's first slot, position)."""

    def __init__(self, inner: Executor, *, keep_delta: bool) -> None:
        self._inner = inner
        self._keep_delta = keep_delta
        self.rows: dict[int, NDArray[np.float32]] = {}

    @property
    def program(self) -> StepProgram:
        return self._inner.program

    @property
    def info(self) -> ExecutorInfo:
        return self._inner.info

    def execute(self, plan: StepPlan) -> StepResult:
        """One sequence at a time: rows are filed by their index."""
        if not self._keep_delta and len(plan.tokens) == 1:
            plan = replace(plan, positions=np.repeat(plan.context[None], 3, axis=0))
        result = self._inner.execute(replace(plan, want_logits=True))
        assert result.logits is not None
        for row, logits in zip(plan.logit_rows.tolist(), result.logits, strict=True):
            self.rows[int(plan.context[0]) + row] = logits.copy()
        return result

    def close(self) -> None:
        self._inner.close()


class VisionRig:
    """An engine with one executor and its encoder, over the checkpoint of `expected`."""

    def __init__(
        self,
        name: str,
        expected: ExpectedVision,
        sizes: EngineSizes,
        *,
        spec_change: Callable[[ModelSpec], ModelSpec] | None = None,
        keep_delta: bool = True,
    ) -> None:
        self.expected = expected
        self._sizes = sizes
        loaded = load_model_spec(expected.path)
        self.plain_spec = self.spec = loaded.spec
        if spec_change is not None:
            self.spec = spec_change(loaded.spec)
            loaded = replace(loaded, spec=self.spec, program=lower(self.spec))
        setup = Setup(
            loaded, max_tokens=512, block_size=sizes.block_size, num_blocks=sizes.num_blocks
        )
        inner = build_executor(name, setup)
        self.recorder = Recorder(inner, keep_delta=keep_delta)
        self.encoder = _encoder_of(name, loaded, inner)
        self._number = 0
        self.last_cached = 0
        self.engine = self._build(sizes)

    def _build(self, sizes: EngineSizes) -> Engine:
        config = EngineConfig(
            ModelConfig("test"),
            CacheConfig(sizes.block_size, sizes.prefix_caching),
            SchedulerConfig(sizes.max_num_seqs, sizes.budget),
            debug_checks=True,
        )
        sequences = min(sizes.max_num_seqs, sizes.budget)
        limits = StepLimits(sizes.budget, sequences, sizes.budget, sizes.max_model_len)
        kv = KvConfig(sizes.block_size, (sizes.num_blocks,), "float32")
        encoding = Encoding(self.encoder, PROCESSOR, 1 << 20)
        return Engine(config, self.recorder, EngineShape(limits, kv), encoding=encoding)

    @property
    def num_preemptions(self) -> int:
        return self.engine.stats().num_preemptions

    def encode(self, picture: Picture, rows: int = 192) -> NDArray[np.float32]:
        """Features of a picture, so many patches at a time."""
        self.encoder.start(
            lambda first, count: patch_rows(picture.pixels, PROCESSOR, first, count),
            *picture.grid,
        )
        while not self.encoder.advance(rows):
            pass
        return self.encoder.features()

    def request(self, number: int, **changes: Any) -> Request:
        """A greedy request for the conversation, without tokens of images in its answer."""
        conversation = self.expected.conversations[number]
        self._number += 1
        banned = tuple((token, -np.inf) for token in range(7, 13))
        sampling = SamplingParams(temperature=0.0, bad_words=tuple((token,) for token, _ in banned))
        request = Request(
            request_id=f"{number}-{self._number}",
            prompt=conversation.prompt,
            max_tokens=NUM_NEW_TOKENS,
            sampling=sampling,
            images=self.expected.images_of(conversation),
        )
        return replace(request, **changes)

    def run(self, requests: Sequence[Request]) -> list[tuple[tuple[int, ...], FinishReason]]:
        """Runs them together; tokens and reasons."""
        for request in requests:
            self.engine.submit(request)
        tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
        reasons: dict[str, FinishReason] = {}
        for _ in range(20_000):
            for event in self.engine.step():
                tokens[event.request_id].extend(event.tokens)
                if event.finish_reason is not None:
                    reasons[event.request_id] = event.finish_reason
                    self.last_cached = event.num_cached_tokens
            if len(reasons) == len(requests):
                break
        self.engine.check_when_idle()
        return [(tuple(tokens[r.request_id]), reasons[r.request_id]) for r in requests]

    def answers(
        self, numbers: Iterable[int], max_tokens: int = NUM_NEW_TOKENS
    ) -> list[tuple[int, ...]]:
        requests = [self.request(number, max_tokens=max_tokens) for number in numbers]
        found = self.run(requests)
        assert all(reason is FinishReason.LENGTH for _, reason in found), found
        return [tokens for tokens, _ in found]

    def logits(self, number: int) -> NDArray[np.float32]:
        """Raw logits at every position of prompt and expected answer, [length, vocabulary]."""
        self.recorder.rows.clear()
        whole = self.expected.conversations[number].prompt + self.expected.greedy[number]
        sampling = SamplingParams(temperature=0.0, num_prompt_logprobs=0)
        prompt_length = len(self.expected.conversations[number].prompt)
        # The prompt is scored row by row, then the answer is decoded by the model itself.
        request = self.request(number, sampling=replace(sampling, bad_words=self._banned))
        self.run([request])
        assert sorted(self.recorder.rows) == list(range(len(whole) - 1)), prompt_length
        rows = [self.recorder.rows[index] for index in range(len(whole) - 1)]
        last = self.expected.logits[number][-1]  # of the last token nobody asks
        return np.stack([*rows, last])

    @property
    def _banned(self) -> tuple[tuple[int, ...], ...]:
        return tuple((token,) for token in range(7, 13))

    def evict_all_but(self, number: int, num_blocks: int) -> None:
        """Forgets the cached blocks of a conversation behind the first `num_blocks`."""
        (group,) = self.engine._blocks._groups
        request = self.request(number)
        from hearth.engine.sequence import Sequence as Life

        life = Life(request, 0, self.engine._blocks.new_table(), self._sizes.max_model_len)
        count = len(request.prompt) // self._sizes.block_size
        for digest in life.block_hashes(count, self._sizes.block_size)[num_blocks:]:
            block = group.by_hash.pop(digest, None)
            if block is not None:
                group.hash_of[block] = None
                del group.cached[block]
                group.free.append(block)

    def answer_with_other_pixels(self, number: int) -> tuple[int, ...]:
        """The same conversation about pictures of other colours."""
        request = self.request(number)
        conversation = self.expected.conversations[number]
        images = []
        for index, first in zip(conversation.pictures, conversation.starts, strict=True):
            picture = self.expected.pictures[index]
            other = replace(picture, pixels=255 - picture.pixels)
            images.append(image_input(other, first, self.expected.path / f"other-{index}"))
        return self.run([replace(request, images=tuple(images))])[0][0]

    def resume(self, number: int, generated: tuple[int, ...]) -> tuple[int, ...]:
        return self.run([self.request(number, generated=generated)])[0][0]

    def reasons_with_lost_pixels(self, numbers: Sequence[int]) -> list[FinishReason]:
        """Each conversation, its pictures' files missing."""

        def lost(image: ImageInput) -> ImageInput:
            return replace(image, digest=b"lost" + image.digest[4:], path=str(Path("/nonexistent")))

        requests = [self.request(number) for number in numbers]
        requests = [replace(r, images=tuple(map(lost, r.images))) for r in requests]
        return [reason for _, reason in self.run(requests)]

    def close(self) -> None:
        self.engine.close()


def _encoder_of(name: str, loaded: LoadedSpec, executor: Executor) -> ImageEncoder:
    assert loaded.encoder is not None
    if name == "reference":
        from hearth.kernels.reference.encoder import ReferenceEncoder
        from hearth.kernels.reference.executor import ReferenceExecutor

        assert isinstance(executor, ReferenceExecutor)
        assert executor._weights is not None
        return ReferenceEncoder(loaded.encoder, executor._weights, MAX_PATCHES)
    from hearth.core.spec import KvDType
    from hearth.kernels.cpu.encoder import CpuEncoder
    from hearth.kernels.cpu.executor import CpuExecutor

    assert isinstance(executor, CpuExecutor)
    return CpuEncoder(loaded.encoder, executor._weights, MAX_PATCHES, 2, kv_dtype=KvDType.FLOAT32)
