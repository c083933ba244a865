"""`hearth quantize MODEL -o DIR`: a quantized checkpoint; its directory goes to stdout."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from hearth.cli.quantize_progress import QuantizeProgress
    from hearth.cli.quantize_quality import Calibrated
    from hearth.quant.checkpoint import Scheme

_CALIBRATION = "Calibration of gptq and awq"


def _flag(name: str, text: str, **settings: Any) -> Any:
    return option(name, text, prefix="QUANTIZE_", **settings)


Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Directory of a Hugging Face model, or a pulled model's name.",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    _flag(
        "--output",
        "Directory for the quantized model. A run that was ended goes on there.",
        short="-o",
        metavar="DIRECTORY",
        show_default=False,
    ),
]
SchemeName = Annotated[
    Literal["w4a16", "w4a16-asym", "w8a16", "w8a8", "fp8"],
    _flag(
        "--scheme",
        "4-bit (with zero points: -asym) or 8-bit weights, head and vision encoder always 8; "
        "w8a8: a scale for each row, and inputs that others round to int8, too; fp8 (e4m3): the "
        "same with FP8, by rtn only.",
    ),
]
GroupSize = Annotated[
    int | None,
    _flag(
        "--group-size",
        "Columns that share a scale: 32, 64 or 128. Default: 128.",
        metavar="COLUMNS",
        show_default=False,
    ),
]
Method = Annotated[
    Literal["rtn", "gptq", "awq"],
    _flag(
        "--method",
        "rtn: round to nearest, at the disk's speed. gptq loses least and awq less than rtn: both "
        "run the model's layers over a text, with hearth[torch], a layer in memory at a time.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    _flag(
        "--ignore",
        "Leave a module as it is: its name, or an expression for names behind re:, such as "
        "'re:.*down_proj'; may be repeated.",
        metavar="PATTERN",
        show_default=False,
    ),
]
CalibrationText = Annotated[
    str,
    _flag(
        "--calibration",
        "Plain text in UTF-8, best like what the model will be asked; builtin: documents and "
        "source code that come with hearth, English and Chinese.",
        metavar="FILE|builtin",
        rich_help_panel=_CALIBRATION,
    ),
]
Sequences = Annotated[
    int,
    _flag(
        "--calibration-sequences",
        "Pieces of the text.",
        min=1,
        max=4096,
        rich_help_panel=_CALIBRATION,
    ),
]
Length = Annotated[
    int,
    _flag(
        "--calibration-length",
        "Tokens of a piece.",
        min=8,
        max=32768,
        rich_help_panel=_CALIBRATION,
    ),
]
MeasureQuality = Annotated[
    bool,
    _flag(
        "--quality/--no-quality",
        "Measure what it cost against MODEL (perplexity, KL divergence; a minute at most, and the "
        "loading of both), and keep the report with the new model.",
    ),
]


def quantize(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    model: Name,
    output: Output,
    scheme: SchemeName = "w4a16",
    group_size: GroupSize = None,
    method: Method = "rtn",
    ignore: Ignore = None,
    calibration: CalibrationText = "builtin",
    calibration_sequences: Sequences = 128,
    calibration_length: Length = 512,
    quality: MeasureQuality = True,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Write a quantized checkpoint that hearth, transformers and vLLM load, and measure its loss.

    Goes on where an earlier run stopped. The new model's directory is printed to stdout.
    """
    from hearth.cli.interrupts import leave_on_signals
    from hearth.cli.pull import check
    from hearth.cli.settings import find_model
    from hearth.core.paths import home_expanded
    from hearth.quant.checkpoint import exclusive
    from hearth.quant.schemes import check_method, scheme_named

    leave_on_signals()  # what is on the disk is good for going on, whenever this ends
    wanted = scheme_named(scheme, group_size)
    check_method(wanted, method)
    order = _Order(
        find_model(model),
        home_expanded(output),
        wanted,
        method,
        tuple(ignore or ()),
        _Text(calibration, calibration_sequences, calibration_length),
        f"{scheme} by {method}",
        with_quality=quality,
    )
    with exclusive(order.target):
        calibrated = _written(order)
        num_errors = check(order.target)
        if quality:
            from hearth.cli.quantize_quality import measure

            measure(order.source, order.target, order.what, calibrated)
    print(order.target)
    if num_errors:
        raise ModelError(
            f"{order.target} was written, but its files do not fit together",
            hint="see the errors above: the unquantized model has the same ones",
        )


@dataclass(frozen=True, slots=True)
class _Text:
    """What is calibrated on."""

    source: str
    num_sequences: int
    length: int


@dataclass(frozen=True, slots=True)
class _Order:
    """What is wanted, from the flags."""

    source: Path
    target: Path
    scheme: Scheme
    method: str
    ignore: tuple[str, ...]
    text: _Text
    what: str
    with_quality: bool

    @property
    def is_to_go_on(self) -> bool:
        """Whether a model that is there may be one that was not measured yet."""
        from hearth.core.quality import REPORT_FILE

        config, report = self.target / "config.json", self.target / REPORT_FILE
        return self.with_quality and config.exists() and not report.exists()


def _written(order: _Order) -> Calibrated | None:
    """Quantizes, unless an earlier run has and was ended while it measured; what was read for it.

    Shows how large the model was and is.
    """
    from hearth.cli.quantize_progress import QuantizeProgress

    begun = time.monotonic()
    with QuantizeProgress() as progress:
        if order.method == "rtn":
            seen, is_new = None, _round(order, progress)
        else:
            seen, is_new = _calibrate(order, progress)
    if is_new:
        _report(order.source, order.target, order.what, time.monotonic() - begun)
    return seen


def _note_whole(progress: QuantizeProgress, target: Path) -> None:
    progress.note(f"{target} is whole already, by the same order: measured only")


def _round(order: _Order, progress: QuantizeProgress) -> bool:
    """Whether there was anything to do."""
    from hearth.quant.checkpoint import is_finished, quantize_directory

    source, target, scheme = order.source, order.target, order.scheme
    if order.is_to_go_on and is_finished(source, target, scheme, order.ignore):
        _note_whole(progress, target)
        return False
    before = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal before
        if not before:
            progress.begin(f"rounding to {scheme}", total)
        progress.advance(done - before)
        before = done

    quantize_directory(source, target, scheme, on_progress, order.ignore)
    return True


def _calibrate(order: _Order, progress: QuantizeProgress) -> tuple[Calibrated, bool]:
    """By the optional packages, which are loaded here; what it read, and if anything was to do.

    Raises ConfigError without them.
    """
    from hearth.cli.quantize_quality import Calibrated
    from hearth.models.loader import load_model_spec
    from hearth.quant.calibrated import require_packages
    from hearth.quant.calibrated.text import read_calibration

    require_packages(order.method)
    source, text = order.source, order.text
    longest = load_model_spec(source).max_position_embeddings
    if text.length > longest:
        raise ConfigError(
            f"--calibration-length is {text.length}; permitted: up to {longest:,}, the model's "
            "context"
        )
    calibration = read_calibration(text.source, source, text.num_sequences, text.length)
    for note in calibration.notes:
        progress.note(f"warning: {note}")
    from hearth.quant.calibrated.run import Order, is_finished, quantize_calibrated

    wanted = Order(source, order.target, order.scheme, order.method, calibration, order.ignore)
    seen = Calibrated(text.source, calibration)
    if order.is_to_go_on and is_finished(wanted, progress):
        _note_whole(progress, order.target)
        return seen, False
    quantize_calibrated(wanted, progress)
    return seen, True


def _report(source: Path, target: Path, what: str, seconds: float) -> None:
    from hearth.core.units import format_bytes, format_duration

    before, after = (
        sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        for directory in (source, target)
    )
    print(
        f"{what}: {format_bytes(before)} became {format_bytes(after)} "
        f"({100 * after / before:.0f} %) in {format_duration(seconds)}",
        file=sys.stderr,
    )
