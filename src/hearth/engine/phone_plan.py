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
from hearth.engine.outlook import Costs, Image, costs_of, spec_of
from hearth.engine.planning import image_info
from hearth.host.speed import Speeds, decode_s, encode_s, prefill_s
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import SCHEMES

SCREEN = Size(2400, 1080)
SYSTEM_TOKENS = 2300  # of the Chinese system prompt, 3,400 characters
MESSAGE_TOKENS = 150  # of a step's own text: the task, or what the screen's app is
ANSWER_TOKENS = 80  # a thought and an action
LATER_STEP = 10
# Bounds of pixels to choose from, both frames of a picture counted, as --max-pixels has it.
PIXELS = (9_633_792, 5_000_000, 2_500_000, 1_250_000, 600_000)


@dataclass(frozen=True, slots=True)
class PhoneStep:
    """Seconds of the first step and of the tenth, answer included."""

    scheme: str
    max_pixels: int
    image_tokens: int
    first_s: float
    later_s: float


def phone_steps(
    backend: BackendChoice, config: EngineConfig, speeds: Speeds
) -> tuple[PhoneStep, ...]:
    """Of every precision and bound of pixels; empty for a model that takes no images.

    Raises ModelError, ConfigError.
    """
    steps: list[PhoneStep] = []
    for scheme in SCHEMES:
        loaded = spec_of(backend, config, scheme)
        costs = costs_of(loaded, config.scheduler.max_num_batched_tokens)
        if costs.encoder is None:
            return ()
        for max_pixels in _pixels(config):
            image = _screenshot(loaded, config, max_pixels)
            steps.append(_step(scheme, costs, speeds, image, max_pixels))
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


def _step(scheme: str, costs: Costs, speeds: Speeds, image: Image, max_pixels: int) -> PhoneStep:
    assert costs.encoder is not None
    encode = encode_s(costs.encoder, speeds, image.num_patches, costs.window_patches).seconds
    new = image.num_tokens + MESSAGE_TOKENS

    def total_s(behind: int) -> float:
        """With so many tokens in the cache before the step's own message."""
        prompt = behind + new
        read = prefill_s(costs.text, speeds, prompt, behind, costs.step_tokens).seconds
        token = decode_s(costs.text, speeds, 1, prompt + ANSWER_TOKENS // 2).seconds
        return encode + read + ANSWER_TOKENS * token

    system_s = prefill_s(costs.text, speeds, SYSTEM_TOKENS, 0, costs.step_tokens).seconds
    history = SYSTEM_TOKENS + (LATER_STEP - 2) * (MESSAGE_TOKENS + ANSWER_TOKENS)
    # The step before is in the cache up to its screenshot; its text comes again without it.
    again = prefill_s(
        costs.text, speeds, history + MESSAGE_TOKENS + ANSWER_TOKENS, history, costs.step_tokens
    ).seconds
    return PhoneStep(
        scheme=scheme,
        max_pixels=max_pixels,
        image_tokens=image.num_tokens,
        first_s=system_s + total_s(SYSTEM_TOKENS),
        later_s=again + total_s(history + MESSAGE_TOKENS + ANSWER_TOKENS),
    )
