"""What `hearth quantize` has cost: a short measurement, kept with the checkpoint it has written.

The checkpoint against what it was made from, through the kernels that serve both, on text that was
not calibrated on. The checkpoint is good whatever comes of it: what cannot be measured is one line,
with the command that measures it later.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.core.config import DeviceConfig, EngineConfig, ModelConfig
from hearth.core.errors import HearthError
from hearth.core.units import format_count

if TYPE_CHECKING:
    from hearth.quant.calibrated.text import Calibration
    from hearth.quant.quality import Quality, QualityRequest

# Errors of some 0.2 % of perplexity for 4-bit codes; a model of 3 billion parameters on two cores
# reads as much in a minute.
NUM_TOKENS = 4096
MOST_SECONDS = 60.0
# Of the calibration's text, that it may be measured on: below, the builtin one tells more.
_LEAST_TOKENS = 1024
_BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was calibrated on: `source` is a path, or builtin."""

    source: str
    calibration: Calibration


def measure(source: Path, target: Path, method: str, calibrated: Calibrated | None) -> None:
    """Measures, shows the line and keeps the report; what cannot be done is said, never raised."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # where numpy is not imported yet
    later = f"hearth quality {_quoted(target)} --against {_quoted(source)} --store measures it"
    try:
        quality = _measured(source, target, calibrated)
        from hearth.quant.report import short_line, store_quality, warnings_of

        line = short_line(quality)
        for warning in warnings_of(quality):
            print(f"warning: {warning}", file=sys.stderr)
    except (HearthError, OSError, MemoryError) as error:
        print(f"quality: not measured: {_told(error)}; {later}", file=sys.stderr)
        return
    print(f"quality: {line}", file=sys.stderr)
    try:
        store_quality(quality, method)
    except (HearthError, OSError) as error:
        print(f"quality: not stored: {_told(error)}; {later}", file=sys.stderr)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, HearthError) else str(error) or "no memory"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _measured(source: Path, target: Path, calibrated: Calibrated | None) -> Quality:
    from hearth.cli.quality_view import QualityProgress
    from hearth.quant.quality import QualityRequest, measure_quality
    from hearth.quant.sides import without_cache

    # The C++ kernels or nothing: no fallback that loads torch.
    model = EngineConfig(ModelConfig(str(target)), device=DeviceConfig(executor="cpu"))
    reference = replace(model, model=ModelConfig(str(source)))
    request = QualityRequest(
        without_cache(model),
        reference,
        num_tokens=NUM_TOKENS,
        num_answers=0,
        with_layers=False,
        most_seconds=MOST_SECONDS,
    )
    if calibrated is not None:
        request = _held_out(request, source, calibrated)
    with QualityProgress() as progress:
        progress.note(
            "the checkpoint is whole; what it costs is measured now (--no-quality leaves that out)"
        )
        return measure_quality(_within_context(request, source), progress)


def _within_context(request: QualityRequest, source: Path) -> QualityRequest:
    from hearth.models.loader import load_model_spec

    longest = load_model_spec(source).max_position_embeddings
    return replace(request, context=min(request.context, longest))


def _held_out(request: QualityRequest, model: Path, calibrated: Calibrated) -> QualityRequest:
    """On what was not calibrated on of the same text, if it is enough, else on the builtin one."""
    from hearth.engine.text.tokenizer import Tokenizer
    from hearth.quant.held_out import SeenText
    from hearth.quant.text import TextSource

    tokenizer = Tokenizer.load(model)
    seen = SeenText.of_tokens(tokenizer, calibrated.calibration.tokens.tolist())
    request = replace(request, seen=seen)
    if calibrated.source == _BUILTIN:
        return request
    found = TextSource(calibrated.source, seen).count_tokens(tokenizer.encode, _LEAST_TOKENS)
    if found >= _LEAST_TOKENS:
        return replace(request, text=calibrated.source)
    print(
        f"{calibrated.source} has {format_count(found)} tokens that were not calibrated on: "
        f"quality is measured on the {_BUILTIN} text",
        file=sys.stderr,
    )
    return request
