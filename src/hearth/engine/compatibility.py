"""Whether the files of a model directory belong together: config, weights, tokenizer, processor.

Every fault names both sides, such as the config's vocabulary and the tokenizer's largest id. It
reads headers and JSON files, never a tensor. The checks are those that a server would meet one by
one, and some that it would meet as bad answers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hearth.core.config import ImagesConfig
from hearth.core.errors import HearthError, UnknownArchitectureError
from hearth.engine.text.chat_template import load_chat_template
from hearth.engine.text.tokenizer import Tokenizer
from hearth.models.config_json import ConfigJson, read_config, read_json
from hearth.models.image_processor import read_image_processor
from hearth.models.image_sizes import check_processor, default_processor
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.safetensors_file import read_checkpoint
from hearth.models.weights import check_weights

Severity = Literal["error", "warning", "note"]
_GENERATION = "generation_config.json"
# What a prompt or a stop cannot do without, and what is harmless where it is not used.
_NEEDED_IDS = (
    "eos_token_id",
    "image_token_id",
    "image_start_token_id",
    "image_end_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)
_OTHER_IDS = ("bos_token_id", "pad_token_id", "video_token_id")


@dataclass(frozen=True, slots=True)
class Finding:
    """error: it cannot be served, or answers badly; warning: look at it; note: for information."""

    severity: Severity
    text: str


def check_model(directory: Path) -> tuple[Finding, ...]:
    """All findings, the worst first; none where everything fits. Raises nothing for bad files."""
    order = ("error", "warning", "note")
    return tuple(sorted(_findings(directory), key=lambda finding: order.index(finding.severity)))


def _findings(directory: Path) -> Iterator[Finding]:
    try:
        config = read_config(directory)
    except HearthError as error:
        yield Finding("error", str(error))
        return
    loaded: LoadedSpec | None = None
    try:
        loaded = load_model_spec(directory)
    except UnknownArchitectureError as error:
        yield Finding("note", str(error))
    except HearthError as error:
        yield Finding("error", str(error))
    yield from _weights(directory, loaded)
    yield from _tokenizer(directory, config, loaded)
    if loaded is not None:
        yield from _images(directory, loaded)


def _weights(directory: Path, loaded: LoadedSpec | None) -> Iterator[Finding]:
    """Every shard is there with its tensors; where the architecture is known, in its shapes."""
    try:
        if loaded is None:
            read_checkpoint(directory)
        else:
            report = check_weights(loaded)
            yield from (Finding("warning", text) for text in report.warnings)
    except HearthError as error:
        yield Finding("error", str(error))


def _tokenizer(directory: Path, config: ConfigJson, loaded: LoadedSpec | None) -> Iterator[Finding]:
    try:
        tokenizer = Tokenizer.load(directory)
    except HearthError as error:
        yield Finding("error", str(error))
        return
    vocab_size = loaded.spec.vocab_size if loaded is not None else _vocab_size(config)
    if vocab_size is not None:
        try:
            tokenizer.check_vocabulary(vocab_size)
        except HearthError as error:
            yield Finding("error", str(error))
    sources = [config]
    text = config.values.get("text_config")
    if isinstance(text, dict):
        sources.append(ConfigJson("config.json: text_config", text))
    if (directory / _GENERATION).is_file():
        try:
            sources.append(read_json(directory / _GENERATION))
        except HearthError as error:
            yield Finding("error", str(error))
    for source in sources:
        yield from _special_ids(source, tokenizer, vocab_size)
    yield from _named_tokens(tokenizer)
    yield from _template(directory, tokenizer)


def _special_ids(
    source: ConfigJson, tokenizer: Tokenizer, vocab_size: int | None
) -> Iterator[Finding]:
    """Ids that a file names exist in the tokenizer and in the model."""
    for key in (*_NEEDED_IDS, *_OTHER_IDS):
        value = source.values.get(key)
        ids = value if isinstance(value, list) else [value]
        for token_id in ids:
            if type(token_id) is not int or token_id < 0:  # null and -1 say that there is none
                continue
            severity: Severity = "error" if key in _NEEDED_IDS else "warning"
            if vocab_size is not None and token_id >= vocab_size:
                text = f"the model's vocabulary has {vocab_size:,} ids, 0 to {vocab_size - 1:,}"
            elif tokenizer.token_text(token_id) is None:
                text = f"the tokenizer, which has {tokenizer.num_tokens:,} tokens, knows no such id"
            else:
                continue
            yield Finding(severity, f"{source.source}: {key} is {token_id:,}, but {text}")


def _named_tokens(tokenizer: Tokenizer) -> Iterator[Finding]:
    for name, text in tokenizer.config.special_tokens.items():
        if tokenizer.token_id(text) is None:
            yield Finding(
                "warning",
                f"tokenizer_config.json: {name} is {text!r}, but the vocabulary has no such token",
            )


def _template(directory: Path, tokenizer: Tokenizer) -> Iterator[Finding]:
    try:
        template = load_chat_template(directory, tokenizer.config)
    except HearthError as error:
        yield Finding("warning", str(error))
        return
    if template is None:
        yield Finding("note", "there is no chat template: completions only, no chats")


def _images(directory: Path, loaded: LoadedSpec) -> Iterator[Finding]:
    vision = loaded.spec.vision
    if vision is None:
        return
    try:
        processor = read_image_processor(
            directory,
            ImagesConfig(),
            frames=vision.pixel_frames,
            defaults=default_processor(vision),
        )
        check_processor(processor, vision)
    except HearthError as error:
        yield Finding("error", str(error))


def _vocab_size(config: ConfigJson) -> int | None:
    """Of an architecture that hearth does not know."""
    for values in (config.values, config.values.get("text_config")):
        found = values.get("vocab_size") if isinstance(values, dict) else None
        if type(found) is int and found > 0:
            return found
    return None
