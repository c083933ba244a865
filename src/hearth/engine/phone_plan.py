"""How long a phone agent's steps would take: the first, whose prompt is new, and a later one.

The agent (docs/open-autoglm.md) sends one screenshot a step, and drops it from the history: what
comes before the step's own message is in the prefix cache, the screenshot is always new.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hearth.core.config import EngineConfig
from hearth.engine.executor import BackendChoice
from hearth.engine.images.resize import Size, resized_size
from hearth.engine.kv_storage import KV_CACHE_DTYPES
from hearth.engine.outlook import Costs, Image, costs_of, spec_of
from hearth.engine.planning import image_info
from hearth.host.speed import Speeds, decode_s, encode_s, prefill_s
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import AUTO_SCHEMES

SCREEN = Size(2400, 1080)
SYSTEM_TOKENS = 2300  # of the Chinese system prompt, 3,400 characters
MESSAGE_TOKENS = 150  # of a step's own text: the task, or what the screen's app is
ANSWER_TOKENS = 80  # a thought and an action
LATER_STEP = 10
_STEP_TOKENS = MESSAGE_TOKENS + ANSWER_TOKENS  # of a step that is over, its screenshot dropped
_HISTORY_TOKENS = SYSTEM_TOKENS + (LATER_STEP - 1) * _STEP_TOKENS
# Bounds of pixels to choose from, both frames of a picture counted, as --max-pixels has it.
PIXELS = (9_633_792, 5_000_000, 2_500_000, 1_250_000, 600_000)


@dataclass(frozen=True, slots=True)
class PhoneStep:
    """Seconds of the first step and of the tenth, answer included.

    `longest_context`: tokens of the longest later step that takes no longer than the target: what
    was said before, its message, its screenshot and its answer; 0: none does; None: no target.
    """

    scheme: str
    max_pixels: int
    image_tokens: int
    first_s: float
    later_s: float
    longest_context: int | None = None


def phone_steps(
    backend: BackendChoice, config: EngineConfig, speeds: Speeds, target_s: float | None = None
) -> tuple[PhoneStep, ...]:
    """Of every precision and bound of pixels; empty for a model that takes no images.

    `target_s`: seconds that a later step may take. Raises ModelError, ConfigError.
    """
    steps: list[PhoneStep] = []
    for scheme in AUTO_SCHEMES:
        loaded = spec_of(backend, config, scheme)
        costs = costs_of(
            loaded,
            config.scheduler.max_num_batched_tokens,
            KV_CACHE_DTYPES[config.cache.dtype],
        )
        if costs.encoder is None:
            return ()
        for max_pixels in _pixels(config):
            image = _screenshot(loaded, config, max_pixels)
            times = _StepTimes(costs, speeds, image)
            most = loaded.max_position_embeddings
            steps.append(
                PhoneStep(
                    scheme=scheme,
                    max_pixels=max_pixels,
                    image_tokens=image.num_tokens,
                    first_s=times.first_s(),
                    later_s=times.later_s(_HISTORY_TOKENS),
                    longest_context=None if target_s is None else times.longest(target_s, most),
                )
            )
    return tuple(steps)


def _pixels(config: EngineConfig) -> Iterable[int]:
    asked = config.images.max_pixels
    return PIXELS if asked is None else (asked,)


def _screenshot(loaded: LoadedSpec, config: EngineConfig, max_pixels: int) -> Image:
    """The screen as the model gets it."""
    info = image_info(loaded, replace(config, images=replace(config.images, max_pixels=max_pixels)))
    assert info is not None, "the model has an encoder"
    processor = info.processor
    size = resized_size(SCREEN, processor)
    patches = (size.height // processor.patch_size) * (size.width // processor.patch_size)
    return Image(patches, patches // processor.merge_size**2)


class _StepTimes:
    """Seconds of steps with one screenshot each."""

    def __init__(self, costs: Costs, speeds: Speeds, image: Image) -> None:
        assert costs.encoder is not None
        self._costs = costs
        self._speeds = speeds
        self._new_tokens = image.num_tokens + MESSAGE_TOKENS
        self._encode_s = encode_s(
            costs.encoder, speeds, image.num_patches, costs.window_patches
        ).seconds

    def first_s(self) -> float:
        """Of a step whose system prompt is new as well."""
        return self._read_s(SYSTEM_TOKENS, 0) + self._own_s(SYSTEM_TOKENS)

    def later_s(self, history: int) -> float:
        """Of a step behind so many tokens, all but the last step's text in the cache.

        The step before is there up to its screenshot; its text comes again without it.
        """
        return self._read_s(history, max(0, history - _STEP_TOKENS)) + self._own_s(history)

    def longest(self, target_s: float, most: int) -> int:
        """Tokens of the longest later step, answer included, that meets a target; 0: none."""
        own = self._new_tokens + ANSWER_TOKENS
        low, high = SYSTEM_TOKENS - 1, most - own
        while low < high:
            middle = (low + high + 1) // 2
            if self.later_s(middle) <= target_s:
                low = middle
            else:
                high = middle - 1
        return low + own if low >= SYSTEM_TOKENS else 0

    def _read_s(self, num_tokens: int, cached: int) -> float:
        costs = self._costs
        return prefill_s(costs.text, self._speeds, num_tokens, cached, costs.step_tokens).seconds

    def _own_s(self, behind: int) -> float:
        """The step's screenshot, message and answer, with so many tokens in the cache."""
        prompt = behind + self._new_tokens
        token_s = decode_s(self._costs.text, self._speeds, 1, prompt + ANSWER_TOKENS // 2).seconds
        return self._encode_s + self._read_s(prompt, behind) + ANSWER_TOKENS * token_s
