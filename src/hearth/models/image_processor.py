"""How a model wants its images prepared, from the files of its directory and the server's settings.

The files: preprocessor_config.json, or the image_processor part of processor_config.json, which
wins where there are both (transformers' order).

The bounds of an image's size have two names, and versions of transformers differ in which one they
follow: `size.shortest_edge` and `size.longest_edge`, or `min_pixels` and `max_pixels` (in `size`
or beside it), which win as they do in Qwen2-VL's processor. Settings of the server win over both.
Settings that change what the model sees and are not applied are refused with their names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.config import ImagesConfig
from hearth.core.errors import ConfigError, ModelError
from hearth.core.images import ImageProcessorSpec
from hearth.models.config_json import ConfigJson, is_number, read_json
from hearth.models.image_sizes import CLIP_MEAN, CLIP_STD

FILE_NAME = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
_SECTION = "image_processor"
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
MAX_PIXELS = 1 << 40
MAX_SIDE = 1024  # of a patch, and of the patches in a token

_RESCALE = 1 / 255
_SIZE_KEYS = {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Of an image's pixels, and who set the upper one."""

    least: int
    most: int


# What transformers' classes take where a file says nothing: Glm4v's (2 frames) and Qwen2-VL's.
_GLM4V = _Bounds(112 * 112, 28 * 28 * 15_000)
_QWEN2_VL = _Bounds(56 * 56, 28 * 28 * 1280)


def read_image_processor(
    directory: Path,
    images: ImagesConfig,
    *,
    frames: int,
    defaults: ImageProcessorSpec | None = None,
) -> ImageProcessorSpec:
    """The processor of a model directory, with the server's settings applied.

    `frames`: how often the processor of the model's family counts a picture (ImageProcessorSpec).
    `defaults`: for what the files leave open, and for a directory without such a file; None: those
    of transformers' classes, and a directory must have one.

    Raises ModelError for a missing, broken or unsupported file, ConfigError for a setting that is
    out of range.
    """
    source = _find(directory)
    if source is None:
        if defaults is None:
            raise ModelError(
                f"{directory} holds neither {FILE_NAME} nor a {PROCESSOR_FILE} with an "
                f"{_SECTION}: the model takes images, and nothing says how they are prepared",
                hint="download the file from the model's repository",
            )
        return _with_settings(defaults, images)
    _refuse_others(source)
    base = defaults or _class_defaults(frames)
    bounds = _bounds(source, base)
    spec = ImageProcessorSpec(
        min_pixels=bounds.least,
        max_pixels=bounds.most,
        frames=frames,
        patch_size=_side(source, "patch_size", base.patch_size),
        temporal_patch_size=_side(source, "temporal_patch_size", base.temporal_patch_size),
        merge_size=_side(source, "merge_size", base.merge_size),
        mean=_channels(source, "image_mean", "do_normalize", base.mean, 0.0),
        std=_channels(source, "image_std", "do_normalize", base.std, 1.0),
        rescale=_rescale(source, base.rescale),
    )
    if spec.max_pixels < spec.frames * spec.token_pixels**2:
        raise ModelError(
            f"{source.source}: images may have {spec.max_pixels:,} pixels, and a single token "
            f"stands for {spec.frames * spec.token_pixels**2:,}",
        )
    return _with_settings(spec, images)


def _find(directory: Path) -> ConfigJson | None:
    """The object that describes the image processor; None: there is none."""
    path = directory / PROCESSOR_FILE
    if path.exists() and (section := read_json(path).section(_SECTION)) is not None:
        return section
    path = directory / FILE_NAME
    return read_json(path) if path.exists() else None


def _class_defaults(frames: int) -> ImageProcessorSpec:
    bounds = _QWEN2_VL if frames == 1 else _GLM4V
    return ImageProcessorSpec(
        min_pixels=bounds.least,
        max_pixels=bounds.most,
        frames=frames,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        rescale=_RESCALE,
    )


def _refuse_others(source: ConfigJson) -> None:
    """Raises ModelError for steps that another processor has and this one does not."""
    if not source.flag("do_resize", default=True):
        raise source.error("do_resize", "true")
    for key in ("do_center_crop", "do_pad"):
        if source.flag(key, default=False):
            raise source.error(key, "false")
    if source.has("resample") and source.values["resample"] != BICUBIC:
        raise source.error("resample", f"{BICUBIC} (bicubic)")
    size = source.section("size")
    if size is not None and not set(size.values) <= _SIZE_KEYS:
        raise source.error("size", "an object of shortest_edge and longest_edge")


def _bounds(source: ConfigJson, base: ImageProcessorSpec) -> _Bounds:
    """Raises ModelError where the lower one is above the upper one."""
    size = source.section("size") or ConfigJson(source.source, {})
    least, most = base.min_pixels, base.max_pixels
    for place in (size, source):
        for key in ("shortest_edge", "min_pixels"):
            least = _pixels(place, key, least)
        for key in ("longest_edge", "max_pixels"):
            most = _pixels(place, key, most)
    if least > most:
        raise ModelError(
            f"{source.source}: images of {least:,} pixels or more and of {most:,} or less are "
            "wanted, which no image has"
        )
    return _Bounds(least, most)


def _pixels(source: ConfigJson, key: str, default: int) -> int:
    return source.integer(key, minimum=1, maximum=MAX_PIXELS, default=default)


def _side(source: ConfigJson, key: str, default: int) -> int:
    return source.integer(key, minimum=1, maximum=MAX_SIDE, default=default)


def _channels(
    source: ConfigJson,
    key: str,
    switch: str,
    default: tuple[float, float, float],
    neutral: float,
) -> tuple[float, float, float]:
    """A number for each of red, green and blue; without normalization the neutral one."""
    if not source.flag(switch, default=True):
        return (neutral, neutral, neutral)
    value = source.values.get(key)
    if value is None:
        return default
    numbers = value if isinstance(value, list) else [value] * 3
    is_valid = len(numbers) == 3 and all(map(is_number, numbers))
    if not is_valid or (neutral and not all(number > 0 for number in numbers)):
        raise source.error(key, f"three numbers{' above 0' if neutral else ''}")
    red, green, blue = map(float, numbers)
    return (red, green, blue)


def _rescale(source: ConfigJson, default: float) -> float:
    if not source.flag("do_rescale", default=True):
        return 1.0
    return source.number("rescale_factor", above=0.0, maximum=1e6, default=default)


def _with_settings(spec: ImageProcessorSpec, images: ImagesConfig) -> ImageProcessorSpec:
    """--min-pixels and --max-pixels in the place of the model's. Raises ConfigError."""
    one_token = spec.frames * spec.token_pixels**2
    if images.max_pixels is not None:
        _check("--max-pixels", images.max_pixels, one_token)
    if images.min_pixels is not None:
        _check("--min-pixels", images.min_pixels, 1)
    least = spec.min_pixels if images.min_pixels is None else images.min_pixels
    most = spec.max_pixels if images.max_pixels is None else images.max_pixels
    if images.min_pixels is None and images.max_pixels is not None:
        least = min(least, most)  # a smaller upper bound alone is no contradiction
    if least > most:
        raise ConfigError(
            f"--min-pixels is {least:,} and images have {most:,} pixels at most",
            param="min_pixels",
            hint="raise --max-pixels, or lower --min-pixels",
        )
    return replace(spec, min_pixels=least, max_pixels=most)


def _check(flag: str, value: int, least: int) -> None:
    if not least <= value <= MAX_PIXELS:
        raise ConfigError(
            f"{flag} is {value:,}; permitted: {least:,} to {MAX_PIXELS:,}",
            param=flag.removeprefix("--").replace("-", "_"),
        )
