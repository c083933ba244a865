"""`hearth pull ORG/NAME[:TAG][@REVISION]`: downloads a model; its directory goes to stdout."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli import pull_options as shared
from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.config import DEFAULT_CODES
from hearth.core.errors import ConfigError, HearthError, ModelError, UnknownArchitectureError

if TYPE_CHECKING:
    from hearth.hub.names import ModelName
    from hearth.hub.pull import Order, Pulled
    from hearth.quant.checkpoint import Converter

_TRUE = ("1", "true", "yes", "on")


def _flag(name: str, text: str, **settings: Any) -> Any:
    return option(name, text, prefix="PULL_", **settings)


Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="ORG/NAME, ORG/NAME@REVISION, or ORG/NAME:Q4_K_M of GGUF files.",
        show_default=False,
    ),
]
SourceFlag = Annotated[
    str,
    _flag(
        "--source",
        "hf (or HF_ENDPOINT), modelscope, the URL of a mirror; auto asks hf, hf-mirror.com and "
        "modelscope in turn, the next one only where there is no answer.",
        metavar="auto|hf|modelscope|URL",
    ),
]
File = Annotated[
    str,
    _flag(
        "--file",
        "The GGUF file to take, where a tag such as :Q4_K_M does not say which.",
        metavar="NAME.gguf",
        show_default=False,
    ),
]
Include = Annotated[
    list[str] | None,
    _flag(
        "--include",
        "Only files like this, such as '*.gguf', instead of what serving needs; may be repeated.",
        metavar="PATTERN",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    _flag("--exclude", "No files like this.", metavar="PATTERN", show_default=False),
]
Quantize = Annotated[
    Literal["none", "int4", "int8"],
    _flag(
        "--quantize",
        "Store matrices as 4-bit or 8-bit codes, file by file while the model comes: the disk "
        "needs room for the result and one file of the source. It is served as the whole model "
        "would be with serve's --quantize.",
    ),
]
GroupSize = Annotated[
    int,
    _flag(
        "--quantize-group-size",
        "Columns that share a scale, as of hearth serve: 32, 64 or 128.",
        metavar="COLUMNS",
    ),
]
Offline = Annotated[
    bool,
    _flag("--offline", "Ask nobody: take what is here (as HF_HUB_OFFLINE=1)."),
]
Workers = Annotated[int, _flag("--max-workers", "Files at a time.", min=1, max=64)]
Timeout = Annotated[
    float,
    _flag(
        "--timeout",
        "Seconds without a byte after which a connection is given up.",
        min=0.1,
        max=86400,
    ),
]
Retries = Annotated[
    int,
    _flag("--retries", "Failures in a row, without a byte in between, until it ends.", min=0),
]
Stage = Annotated[
    str,
    option(
        "--stage",
        "Copy the model to this directory on a fast disk, too, and print the copy's.",
        metavar="DIRECTORY",
        show_default=False,
    ),
]


def pull(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    model: Name,
    source: SourceFlag = "auto",
    file: File = "",
    include: Include = None,
    exclude: Exclude = None,
    quantize: Quantize = "none",
    quantize_group_size: GroupSize = DEFAULT_CODES.group_size,
    offline: Offline = False,
    max_workers: Workers = 4,
    timeout: Timeout = 30.0,
    retries: Retries = 5,
    models_dir: shared.ModelsDir = "",
    stage: Stage = "",
    stage_bytes: shared.StageBytes = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Download a model from Hugging Face, a mirror or ModelScope, and verify it.

    Goes on where an earlier one stopped. The model's directory is printed to stdout.
    """
    from hearth.cli.interrupts import leave_on_signals
    from hearth.hub.names import parse_name
    from hearth.hub.pull import Order
    from hearth.hub.transport import Retry

    leave_on_signals()  # what is on the disk is good for going on, whenever this ends
    patience = Retry(attempts=retries + 1, timeout_s=timeout, connect_timeout_s=min(10.0, timeout))
    name = _with_file(parse_name(model), file)
    order = Order(name, tuple(include or ()), tuple(exclude or ()), max_workers, patience)
    _check_tag(order)
    is_offline = offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    converter = _converter(order, quantize, quantize_group_size)
    pulled = _pulled(order, source, models_dir, converter, is_offline=is_offline)
    _report(pulled)
    num_errors = 0 if order.has_patterns else check(pulled.path)
    print(_staged(pulled.path, stage, stage_bytes) if stage else pulled.path)
    if num_errors:
        raise ModelError(
            f"{order.name} was downloaded as its source has it, but its files do not fit together",
            hint="see the errors above; pull another revision, or ask the model's owner",
        )


def _with_file(name: ModelName, file: str) -> ModelName:
    """A file is as good as a tag. Raises ConfigError."""
    from dataclasses import replace

    if not file:
        return name
    if name.tag is not None:
        raise ConfigError(
            f"--file {file} and the tag {name.tag} both name the GGUF file",
            hint="leave out one or the other",
        )
    return replace(name, tag=file)


def _check_tag(order: Order) -> None:
    if order.name.tag is not None and order.include:
        raise ConfigError(
            f"{order.name.tag} names a GGUF file, and --include chooses files by patterns",
            hint="leave out one or the other",
        )


def _converter(order: Order, scheme: str, group_size: int) -> Converter | None:
    """What is made of the model while it comes. Raises ConfigError."""
    if scheme == "none":
        return None
    if order.has_patterns:
        raise ConfigError(
            "--quantize converts whole models; --include and --exclude choose files",
            hint="leave out one or the other",
        )
    if order.name.tag is not None:
        raise ConfigError(
            f"--quantize converts safetensors; {order.name} names a GGUF file, which is codes",
            hint="leave out one or the other",
        )
    from hearth.quant.checkpoint import Converter, scheme_of

    return Converter(scheme_of(scheme, group_size))


def _pulled(
    order: Order, source: str, models_dir: str, converter: Converter | None, *, is_offline: bool
) -> Pulled:
    from hearth.cli.pull_progress import PullProgress
    from hearth.hub import pull as work
    from hearth.hub.converting import ConvertingAttempt, converted_name
    from hearth.hub.store import Store
    from hearth.hub.store import models_dir as find_dir

    store = Store(find_dir(os.environ, models_dir))
    if is_offline:
        name = order.name
        if converter is not None:
            name = converted_name(name, converter.label)
        return work.offline(store, name)
    from hearth.hub.huggingface import user_token
    from hearth.hub.sources import sources_for

    sources = sources_for(source, os.environ, user_token)
    with PullProgress() as progress:
        make = None if converter is None else partial(ConvertingAttempt, converter)
        return work.pull(store, order, sources, progress, make)


def _report(pulled: Pulled) -> None:
    from hearth.core.units import format_bytes

    manifest = pulled.manifest
    size = f"{len(manifest.files)} files, {format_bytes(manifest.num_bytes)}"
    what = (
        f"{format_bytes(pulled.num_fetched_bytes)} fetched from {manifest.source}, verified"
        if pulled.num_fetched_bytes
        else f"all here since {manifest.pulled_at}, from {manifest.source}"
    )
    made = f"+{manifest.converted}" if manifest.converted else ""
    print(f"{manifest.model}@{manifest.commit[:12]}{made}: {size}; {what}", file=sys.stderr)
    if pulled.unverified:
        names = ", ".join(pulled.unverified[:5])
        print(
            f"warning: {manifest.source} gives no checksum for {len(pulled.unverified)} files, "
            f"which could not be compared: {names}",
            file=sys.stderr,
        )


def check(model_dir: Path) -> int:
    """Shows what does not fit together in a model's directory; how many errors there are."""
    from hearth.engine.compatibility import Finding, check_model
    from hearth.models.gguf.view import find_gguf, view_of

    try:
        gguf = find_gguf(model_dir)
        findings = check_model(model_dir if gguf is None else view_of(gguf, os.environ))
    except UnknownArchitectureError as error:  # as of safetensors: newer versions may read it
        findings = (Finding("note", str(error)),)
    except HearthError as error:
        findings = (Finding("error", str(error)),)
    for finding in findings:
        print(f"{finding.severity}: {finding.text}", file=sys.stderr)
    return sum(finding.severity == "error" for finding in findings)


def _staged(model_dir: Path, directory: str, max_bytes: int | None) -> Path:
    """The path of the copy, made where it is not there yet."""
    from hearth.cli.pull_progress import PullProgress
    from hearth.core.paths import home_expanded
    from hearth.hub.stage import stage

    with PullProgress() as progress:
        staged = stage(model_dir, home_expanded(directory), max_bytes, progress)
    staged.release()
    return staged.path
