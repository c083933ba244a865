"""What the flags about images say together: sections of the configuration, and warnings.

A bound may be given by hearth's flag and by vLLM's; they must agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.core.config import DEFAULT_IMAGES, ImagesConfig, MediaConfig
from hearth.core.errors import ConfigError
from hearth.core.paths import home_expanded

_LIMIT_FLAG = "--limit-mm-per-prompt"
_KWARGS_FLAG = "--mm-processor-kwargs"
# Both names of each bound, as processors of transformers take them.
_BOUNDS = {
    "min_pixels": "min_pixels",
    "shortest_edge": "min_pixels",
    "max_pixels": "max_pixels",
    "longest_edge": "max_pixels",
}


@dataclass(frozen=True, slots=True)
class ImageFlags:
    """The flags as they were given; empty and None: not at all."""

    limit_images: int | None = None
    limit_mm_per_prompt: str = ""
    max_pixels: int | None = None
    min_pixels: int | None = None
    mm_processor_kwargs: str = ""
    image_cache_bytes: int = DEFAULT_IMAGES.cache_bytes
    allowed_local_media_path: str = ""
    allowed_media_domains: Sequence[str] | None = None
    allow_private_media_addresses: bool = False
    chat_template_content_format: str = "auto"


def images_config(flags: ImageFlags) -> ImagesConfig:
    """The engine's section. Raises ConfigError."""
    kwargs = _processor_kwargs(flags.mm_processor_kwargs)
    return ImagesConfig(
        min_pixels=_agreed("--min-pixels", flags.min_pixels, _KWARGS_FLAG, kwargs["min_pixels"]),
        max_pixels=_agreed("--max-pixels", flags.max_pixels, _KWARGS_FLAG, kwargs["max_pixels"]),
        cache_bytes=flags.image_cache_bytes,
        limit=_limit(flags),
    )


def media_config(flags: ImageFlags) -> MediaConfig:
    """The front end's section. Raises ConfigError."""
    return MediaConfig(
        limit_images=_limit(flags),
        allowed_local_path=_local_path(flags.allowed_local_media_path),
        allowed_media_domains=tuple(map(_domain, flags.allowed_media_domains or ())),
        allow_private_addresses=flags.allow_private_media_addresses,
    )


def _limit(flags: ImageFlags) -> int:
    """Most images of a request. Raises ConfigError."""
    limit = _agreed(
        "--limit-images", flags.limit_images, _LIMIT_FLAG, _image_limit(flags.limit_mm_per_prompt)
    )
    return DEFAULT_IMAGES.limit if limit is None else limit


def image_warnings(flags: ImageFlags) -> tuple[str, ...]:
    """What the user should know of these flags."""
    found: list[str] = []
    if flags.chat_template_content_format != "auto":
        found.append(
            f"--chat-template-content-format {flags.chat_template_content_format} has no effect: "
            "the chat template decides; content may be text or a list of parts, with images too"
        )
    if flags.allowed_local_media_path and Path(_local_path(flags.allowed_local_media_path)) == Path(
        "/"
    ):
        found.append(
            "--allowed-local-media-path /: whoever reaches this server may have it look at every "
            "image on this machine"
        )
    if flags.allow_private_media_addresses and not flags.allowed_media_domains:
        found.append(
            "--allow-private-media-addresses has no effect without --allowed-media-domains"
        )
    return tuple(found)


def _agreed(flag: str, value: int | None, other: str, other_value: int | None) -> int | None:
    """The value of either; None: of neither. Raises ConfigError where they contradict."""
    if value is not None and other_value is not None and value != other_value:
        raise ConfigError(
            f"{flag} is {value:,} and {other} says {other_value:,}",
            param=flag.removeprefix("--").replace("-", "_"),
            hint="leave one of them out",
        )
    return other_value if value is None else value


def _image_limit(text: str) -> int | None:
    """`{"image": 10}`, or the older `image=10`; other modalities may be limited to any number."""
    if not text:
        return None
    if "{" not in text and "=" in text:
        pairs = [pair.partition("=") for pair in text.split(",")]
        limits: Mapping[str, Any] = {
            name.strip(): int(count) if count.strip().isdecimal() else count
            for name, _, count in pairs
        }
    else:
        limits = _json_object(_LIMIT_FLAG, text, '{"image": 10}')
    for name in limits:
        if name not in ("image", "video", "audio"):
            raise ConfigError(
                f"{_LIMIT_FLAG}: {name[:40]!r} is not a kind of input; permitted: image, video, "
                "audio"
            )
    limit = limits.get("image")
    if isinstance(limit, Mapping):
        limit = limit.get("count")
    if limit is None:
        return None
    return _whole(f"{_LIMIT_FLAG}: image", limit, 0)


def _processor_kwargs(text: str) -> dict[str, int | None]:
    """Bounds by our names, from `max_pixels` and its like, or from `size` with them in it."""
    found: dict[str, int | None] = {"min_pixels": None, "max_pixels": None}
    if not text:
        return found
    example = '{"max_pixels": 5000000}'
    given = dict(_json_object(_KWARGS_FLAG, text, example))
    size = given.pop("size", None) or {}
    if not isinstance(size, Mapping):
        raise ConfigError(f"{_KWARGS_FLAG}: size is {size!r}; permitted: an object of its bounds")
    for key, value in [*size.items(), *given.items()]:
        if key not in _BOUNDS:
            raise ConfigError(
                f"{_KWARGS_FLAG}: {str(key)[:40]!r} is not a setting of the image processor that "
                "is applied here; permitted: min_pixels, max_pixels, and size with shortest_edge "
                "and longest_edge",
                hint="leave it out",
            )
        if value is not None:
            found[_BOUNDS[key]] = _whole(f"{_KWARGS_FLAG}: {key}", value, 1)
    return found


def _json_object(flag: str, text: str, example: str) -> Mapping[str, Any]:
    """Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{flag} {text[:60]!r} is not valid JSON: {error}",
            hint=f"write it in single quotes: {flag} '{example}'",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} {text[:60]!r} is no JSON object; permitted: {example}")
    return value


def _whole(what: str, value: object, least: int) -> int:
    """Raises ConfigError for what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} is {value!r}; permitted: a whole number from {least}")
    return value


def _local_path(text: str) -> str:
    """The directory, absolute. Raises ConfigError where it is none."""
    if not text:
        return ""
    path = home_expanded(text)
    if not path.is_dir():
        raise ConfigError(
            f"--allowed-local-media-path {text} is not a directory",
            hint="name an existing directory, or leave the flag out",
        )
    return str(path.absolute())


def _domain(text: str) -> str:
    """A host name. Raises ConfigError for a URL and other things that no host is called."""
    host = text.strip().lower()
    if not host or any(mark in host for mark in "/:@ ,") or ("*" in host and host != "*"):
        raise ConfigError(
            f"--allowed-media-domains {text!r} is not the name of a host (permitted: names such as "
            "images.example.com, or *)",
            hint="write the host alone, without https:// and without a port",
        )
    return host
