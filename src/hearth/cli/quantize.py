"""`hearth quantize MODEL -o DIR`: a quantized checkpoint; its directory goes to stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from hearth.cli.quantize_progress import QuantizeProgress
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
    Literal["w4a16", "w4a16-asym", "w8a16", "w8a8"],
    _flag(
        "--scheme",
        "4-bit (with zero points: -asym) or 8-bit weights, head and vision encoder always 8; "
        "w8a8: a scale for each row, and inputs that others round to int8, too.",
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
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Write a quantized checkpoint that hearth, transformers and vLLM load.

    Goes on where an earlier run stopped. The new model's directory is printed to stdout.
    """
    from hearth.cli.interrupts import leave_on_signals
    from hearth.cli.pull import check
    from hearth.cli.quantize_progress import QuantizeProgress
    from hearth.cli.settings import find_model
    from hearth.core.paths import home_expanded
    from hearth.quant.checkpoint import exclusive
    from hearth.quant.schemes import scheme_named

    leave_on_signals()  # what is on the disk is good for going on, whenever this ends
    wanted = scheme_named(scheme, group_size)
    source, target = find_model(model), home_expanded(output)
    patterns = tuple(ignore or ())
    begun = time.monotonic()
    with exclusive(target), QuantizeProgress() as progress:
        if method == "rtn":
            _round(source, target, wanted, patterns, progress)
        else:
            text = (calibration, calibration_sequences, calibration_length)
            _calibrate(source, target, wanted, patterns, method, text, progress)
    _report(source, target, f"{scheme} by {method}", time.monotonic() - begun)
    num_errors = check(target)
    print(target)
    if num_errors:
        raise ModelError(
            f"{target} was written, but its files do not fit together",
            hint="see the errors above: the unquantized model has the same ones",
        )


def _round(
    source: Path, target: Path, scheme: Scheme, ignore: tuple[str, ...], progress: QuantizeProgress
) -> None:
    from hearth.quant.checkpoint import quantize_directory

    before = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal before
        if not before:
            progress.begin(f"rounding to {scheme}", total)
        progress.advance(done - before)
        before = done

    quantize_directory(source, target, scheme, on_progress, ignore)


def _calibrate(
    source: Path,
    target: Path,
    scheme: Scheme,
    ignore: tuple[str, ...],
    method: str,
    text: tuple[str, int, int],
    progress: QuantizeProgress,
) -> None:
    """By the optional packages, which are loaded here. Raises ConfigError without them."""
    from hearth.models.loader import load_model_spec
    from hearth.quant.calibrated import require_packages
    from hearth.quant.calibrated.text import read_calibration

    require_packages(method)
    longest = load_model_spec(source).max_position_embeddings
    if text[2] > longest:
        raise ConfigError(
            f"--calibration-length is {text[2]}; permitted: up to {longest:,}, the model's context"
        )
    calibration = read_calibration(text[0], source, text[1], text[2])
    for note in calibration.notes:
        progress.note(f"warning: {note}")
    from hearth.quant.calibrated.run import Order, quantize_calibrated

    order = Order(source, target, scheme, method, calibration, ignore)
    quantize_calibrated(order, progress)


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
