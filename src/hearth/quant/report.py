"""What was measured, as JSON, as lines of a table, and as the short report that stays with a model.

Shares are shares (0.004), divergences nats, probabilities probabilities; text has the same figures
in per cent where people read per cent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hearth import __version__
from hearth.core.errors import ConfigError
from hearth.core.quality import QualitySummary
from hearth.core.spec import QuantSpec
from hearth.engine.canary import CANARY_VERSION
from hearth.engine.quality_store import (
    is_stored_quantized,
    kv_dtype_of,
    quality_key,
    quality_path,
    write_quality,
)
from hearth.models.config_json import read_config
from hearth.models.loader import LoadedSpec
from hearth.models.quantize import storage_of
from hearth.quant.divergence import Divergence, Estimate
from hearth.quant.layers import LayerReport, MatrixError
from hearth.quant.quality import GreedyDivergence, Quality
from hearth.quant.sides import PlannedSide

NUM_MATRICES = 5  # that are shown of the worst
_UNSURE = 1000.0  # a perplexity from which on a model does not know the kind of text


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    value: str
    meaning: str = ""


def storage_name(side: PlannedSide) -> str:
    """How a model's matrices are stored, such as "int4 91 %, int8 9 %; int8 activations"."""
    if not isinstance(side.loaded, LoadedSpec):
        return str(side.loaded.dtype)
    slots = side.loaded.program.slots
    rows = {_rows_name(slot.quant) for slot in slots if slot.quant.int8_rows}
    sizes = sorted({slot.quant.group_size for slot in slots if slot.quant.bits})
    groups = [f"groups of {', '.join(map(str, sizes))}"] if sizes else []
    return "; ".join([storage_of(slots), *groups, *rows])


def _rows_name(quant: QuantSpec) -> str:
    return "int8 activations" + (" with residuals" if quant.residual_rows else "")


def method_of(side: PlannedSide) -> str:
    """How its codes were made, as far as the files tell."""
    if side.config.model.quantize != "none":
        return "rounded to nearest at load"
    loaded = side.loaded
    if isinstance(loaded, LoadedSpec) and is_stored_quantized(loaded):
        section = read_config(side.path).values.get("quantization_config")
        named = section.get("quant_method") if isinstance(section, dict) else None
        return f"checkpoint, {named}" if named else "checkpoint"
    return "none"


def summary_of(quality: Quality, method: str | None = None) -> QualitySummary:
    """The short report. `method`: how the codes were made, where the caller knows better.

    Raises ConfigError for what was interrupted, and for a model that transformers runs.
    """
    side, loaded = quality.model, quality.model.loaded
    if not quality.is_whole:
        raise ConfigError("the measuring was interrupted: nothing is stored")
    if not isinstance(loaded, LoadedSpec):
        raise ConfigError(
            f"{side.path}: a report is stored of models that hearth's own kernels run",
            hint="leave --store out",
        )
    found = quality.divergence
    return QualitySummary(
        weights_key=quality_key(loaded, kv_dtype_of(side.config, loaded)),
        scheme=storage_name(side),
        method=method or method_of(side),
        reference="" if quality.reference is None else _name_of(quality.reference),
        perplexity=quality.perplexity.mean,
        perplexity_error=quality.perplexity.error,
        text=quality.text.name,
        text_sha256=quality.text.sha256,
        text_bytes=quality.text.num_bytes,
        num_tokens=quality.num_tokens,
        context=quality.context,
        measured_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        hearth_version=__version__,
        executor=quality.executor,
        canary_version=CANARY_VERSION,
        canary=quality.canary,
        **({} if found is None else _compared(found)),
    )


def short_line(quality: Quality) -> str:
    """Such as `perplexity +0.40 %, KL 0.012, same best token 97.1 % (builtin text, 4,096 tokens)`.

    Raises as `summary_of`.
    """
    summary = summary_of(quality)
    return f"{summary.line()} ({summary.text} text, {summary.num_tokens:,} tokens)"


def store_quality(quality: Quality, method: str | None = None) -> Path:
    """Keeps the short report where the server looks for it; returns its path.

    For `--store`, and for whoever has just made the checkpoint and knows its `method`. Raises as
    `summary_of`, and ConfigError where it cannot be written.
    """
    summary = summary_of(quality, method)
    loaded = quality.model.loaded
    assert isinstance(loaded, LoadedSpec)
    path = quality_path(loaded, quality.model.config, summary.weights_key)
    write_quality(path, summary)
    return path


def _compared(found: Divergence) -> dict[str, float]:
    change = found.perplexity_change
    return {
        "reference_perplexity": found.reference_perplexity.mean,
        "perplexity_change": change.mean,
        "perplexity_change_error": change.error,
        "kl": found.kl.mean,
        "kl_999": found.kl_quantiles["99.9 %"],
        "top1": found.top1.mean,
    }


def as_json(quality: Quality) -> dict[str, Any]:
    """Everything, under names with their units."""
    return {
        "model": _side_json(quality.model),
        "reference": None if quality.reference is None else _side_json(quality.reference),
        "executor": quality.executor,
        "text": asdict(quality.text),
        "context_tokens": quality.context,
        "num_sequences": quality.num_sequences,
        "num_tokens": quality.num_tokens,
        "perplexity": asdict(quality.perplexity),
        "divergence": None if quality.divergence is None else _divergence_json(quality.divergence),
        "greedy": None if quality.greedy is None else _greedy_json(quality.greedy),
        "layers": None if quality.layers is None else asdict(quality.layers),
        "layers_missing": quality.layers_missing,
        "seconds": round(quality.seconds, 3),
        "is_whole": quality.is_whole,
        "one_by_one": quality.one_by_one,
        "warnings": list(warnings_of(quality)),
    }


def warnings_of(quality: Quality) -> Iterator[str]:
    """What a reader must know of the figures."""
    yield from quality.warnings
    if not quality.is_whole:
        yield f"interrupted after {quality.num_tokens:,} tokens: the figures are of these"
    base = quality.divergence.reference_perplexity if quality.divergence else quality.perplexity
    if base.mean > _UNSURE:
        yield (
            f"perplexity {base.mean:,.0f}: the model does not know this kind of text; divergences "
            "count, changes of the perplexity tell little: name a text with --text"
        )
    if quality.num_tokens < 1000:
        yield f"{quality.num_tokens:,} tokens are few: see the errors"


def rows_of(quality: Quality) -> Iterator[Row]:
    """The table."""
    found = quality.divergence
    if found is None:
        yield Row("perplexity", _plus_minus(quality.perplexity, "{:.4f}"))
        return
    change = found.perplexity_change
    percent = Estimate(100 * change.mean, 100 * change.error)
    delta = Estimate(100 * found.delta_p.mean, 100 * found.delta_p.error)
    top1 = Estimate(100 * found.top1.mean, 100 * found.top1.error)
    yield Row("perplexity", _plus_minus(found.perplexity, "{:.4f}"), "of MODEL")
    yield Row("", _plus_minus(found.reference_perplexity, "{:.4f}"), "of the reference")
    yield Row("change", _plus_minus(percent, "{:+.3f}") + " %", "paired, token by token")
    yield Row("ln ratio", _plus_minus(found.ln_ratio, "{:+.6f}"))
    yield Row("KL divergence", _plus_minus(found.kl, "{:.6f}"), "mean, nats a token")
    for name, value in found.kl_quantiles.items():
        yield Row("", f"{value:.6f}", name)
    yield Row("Δp", _plus_minus(delta, "{:+.3f}") + " %", "of the true token, mean")
    yield Row("", f"{100 * found.rms_delta_p:.3f} %", "root mean square")
    yield Row("same best token", _plus_minus(top1, "{:.2f}") + " %")
    if quality.greedy is not None:
        yield from _greedy_rows(quality.greedy)
    if quality.layers is not None:
        yield from _layer_rows(quality.layers)
    elif quality.layers_missing:
        yield Row("layers", "not measured", quality.layers_missing)


def _greedy_rows(greedy: GreedyDivergence) -> Iterator[Row]:
    count = len(greedy.equal_tokens)
    yield Row(
        "greedy answers",
        f"{greedy.mean:.1f} tokens",
        f"until they part, mean of {count}, up to {greedy.answer_tokens}; median "
        f"{greedy.median:.0f}; {greedy.num_whole} of {count} equal to the end",
    )


def _layer_rows(report: LayerReport) -> Iterator[Row]:
    worst, last = report.worst_layer, report.layers[-1]
    yield Row("worst layer", f"{worst.layer}", f"{_share(worst.own)} of its output, by itself")
    yield Row("", _share(last.added_up), f"of the last layer's output ({last.layer}), added up")
    for number, matrix in enumerate(report.matrices[:NUM_MATRICES]):
        name = "worst matrices" if number == 0 else ""
        yield Row(name, matrix.name, f"{_share(matrix.error)} of its output; {_where(matrix)}")


def _where(matrix: MatrixError) -> str:
    return matrix.storage


def _share(error: float) -> str:
    """A relative squared error."""
    return f"{100 * error:.3g} %"


def _plus_minus(estimate: Estimate, form: str) -> str:
    error = form.replace("+", "").format(estimate.error)
    return f"{form.format(estimate.mean)} ± {error}"


def _name_of(side: PlannedSide) -> str:
    return f"{side.path.resolve().name} ({storage_name(side)})"


def _side_json(side: PlannedSide) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "storage": storage_name(side),
        "method": method_of(side),
        "planned_bytes": side.num_bytes,
    }


def _divergence_json(found: Divergence) -> dict[str, Any]:
    return {**asdict(found), "perplexity_change": asdict(found.perplexity_change)}


def _greedy_json(greedy: GreedyDivergence) -> dict[str, Any]:
    return {**asdict(greedy), "mean": greedy.mean, "median": greedy.median}
