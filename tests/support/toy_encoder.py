"""An encoder that takes one pass a patch and answers with the colour of the image, an executor that
checks what it is given to show, and images of one colour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearth.core.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from hearth.core.images import ImageInput, ImageProcessorSpec
from hearth.core.program import KvGroupSpec, StepProgram
from hearth.core.request import Request, SamplingParams
from hearth.core.step import (
    ExecutorInfo,
    KvConfig,
    PatchSource,
    StepLimits,
    StepPlan,
    StepResult,
)
from hearth.engine.encoding import Encoding
from hearth.engine.engine import Engine, EngineShape

IMAGE_TOKEN = 7
WIDTH = 8
OUTPUT_BYTES = 64 * WIDTH * 4  # of an image of 8 × 8 tokens
PROCESSOR = ImageProcessorSpec(1, 1 << 30, 1, 1, 1, 1, (0.0,) * 3, (1.0,) * 3, 1.0)


@dataclass
class ToyClock:
    """Shows what the test says, and what the toys take."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class ToyEncoder:
    """A token is a pixel; its output is the pixel's first value, WIDTH times."""

    max_patches = 1 << 20
    output_size = WIDTH

    def __init__(self, clock: ToyClock) -> None:
        self.num_started = 0
        self.call_s = 0.0
        self._clock = clock
        self._left = 0
        self._output = np.zeros((0, WIDTH), np.float32)

    def start(self, patches: PatchSource, grid_height: int, grid_width: int) -> None:
        self.num_started += 1
        self._left = grid_height * grid_width
        self._output = np.repeat(patches(0, self._left)[:, :1], WIDTH, axis=1)

    def advance(self, num_rows: int) -> bool:
        self._clock.now += self.call_s
        self._left -= num_rows
        return self._left <= 0

    def features(self) -> NDArray[np.float32]:
        return self._output

    def close(self) -> None:
        pass


class ColourExecutor:
    """Answers 20, 21, …; asserts that each row of an image shows that image's colour."""

    def __init__(self) -> None:
        self.program = StepProgram((), (), (), (KvGroupSpec(1, 1, 16, 0),), vocab_size=100)
        self.info = ExecutorInfo("toy", "", "", bit_identical=True)
        self.before_step: Callable[[], object] = lambda: None

    def execute(self, plan: StepPlan) -> StepResult:
        self.before_step()
        shown = {
            row: plan.features[number][index][0] for row, number, index in plan.encoder.tolist()
        }
        for row, token in enumerate(plan.tokens.tolist()):
            assert (token == IMAGE_TOKEN) == (row in shown), "an image's row without its output"
        num_rows = len(plan.logit_rows)
        tokens = (plan.sampling.position % 50 + 20).astype(np.int32)
        return StepResult(tokens, np.zeros(num_rows, np.float32))

    def close(self) -> None:
        pass


class ToyRig:
    """The real engine around both."""

    def __init__(
        self,
        directory: Path,
        *,
        num_blocks: int = 64,
        max_num_seqs: int = 16,
        budget: int = 64,
        cache_bytes: int = 1 << 20,
    ) -> None:
        self._directory = directory
        config = EngineConfig(
            ModelConfig("test"),
            CacheConfig(16),
            SchedulerConfig(max_num_seqs, budget),
            debug_checks=True,
        )
        limits = StepLimits(budget, min(max_num_seqs, budget), budget, 2048)
        self.clock = ToyClock()
        self.encoder, self.executor = ToyEncoder(self.clock), ColourExecutor()
        self.encoding = Encoding(self.encoder, PROCESSOR, cache_bytes, self.clock)
        shape = EngineShape(limits, KvConfig(16, (num_blocks,), "float32"))
        self.engine = Engine(config, self.executor, shape, encoding=self.encoding, clock=self.clock)
        self.ended: dict[str, str] = {}  # finish reason and message, by request
        self.order: list[str] = []

    def image(self, first_token: int, colour: int, name: str = "", side: int = 8) -> ImageInput:
        """Of side² tokens, 64 unless said; equal colours have equal digests, `name` its file."""
        pixels = bytes([colour]) * side * side * 3
        path = self._directory / f"{colour}{name}"
        if not path.exists():
            path.write_bytes(pixels)
        digest = hashlib.sha256(pixels).digest()
        return ImageInput(digest, first_token, side * side, side, side, str(path))

    def submit(
        self,
        name: str,
        before: list[int],
        image: ImageInput | None = None,
        max_tokens: int = 3,
        priority: int = 0,
    ) -> Request:
        """Text, an image, and a token behind it."""
        prompt = (*before, *([IMAGE_TOKEN] * image.num_tokens if image else ()), 2)
        request = Request(
            name,
            prompt,
            max_tokens,
            SamplingParams(temperature=0.0),
            images=(image,) if image else (),
            priority=priority,
        )
        self.engine.submit(request)
        return request

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for event in self.engine.step():
                if event.finish_reason is not None:
                    self.ended[event.request_id] = f"{event.finish_reason} {event.message}".strip()
                    self.order.append(event.request_id)
