"""`hearth quality MODEL`: what a model's quantization costs, measured on a text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli import options as flag
from hearth.cli.config_file import Config
from hearth.cli.options import option, quantity
from hearth.core.config import (
    DEFAULT_CODES,
    CacheConfig,
    CodesConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    WeightCacheConfig,
)
from hearth.core.errors import ConfigError

if TYPE_CHECKING:
    from hearth.quant.quality import Quality, QualityRequest

NOTHING = "none"  # to compare with
INTERRUPTED = 130
_RESULT = "Result"
_MEASURE = "What is measured"


def _flag(name: str, text: str, panel: str = _MEASURE, **settings: Any) -> Any:
    return option(name, text, prefix="QUALITY_", rich_help_panel=panel, **settings)


MeasuredModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Directory of a model, or a pulled one's name.", show_default=False
    ),
]
Against = Annotated[
    str,
    _flag(
        "--against",
        "The model to compare with: a directory or a pulled one's name; none: the perplexity of "
        "MODEL alone. Default: MODEL itself, unquantized.",
        metavar="REF",
        show_default=False,
    ),
]
AgainstQuantize = Annotated[
    Literal["none", "int8", "int4", "fp8"],
    _flag("--against-quantize", "Quantize the reference, too, as serve's --quantize does."),
]
Text = Annotated[
    str,
    _flag("--text", "A UTF-8 file of any size, or builtin.", metavar="FILE|builtin"),
]
Tokens = Annotated[
    int, _flag("--tokens", "Tokens of the text at most.", parser=quantity, metavar="TOKENS")
]
ContextTokens = Annotated[
    int,
    _flag(
        "--context",
        "Tokens of a sequence; the text is cut into such.",
        parser=quantity,
        metavar="TOKENS",
    ),
]
Answers = Annotated[
    int, _flag("--answers", "Greedy answers that are compared; 0: none.", min=0, max=64)
]
AnswerTokens = Annotated[int, _flag("--answer-tokens", "Tokens of an answer.", min=1, max=4096)]
Layers = Annotated[
    bool, _flag("--layers/--no-layers", "Find the layer and the matrix that lose most.")
]
AsJson = Annotated[bool, _flag("--json", "Everything as JSON.", _RESULT)]
Plot = Annotated[
    Path | None,
    _flag("--plot", "Write a plot to this SVG file.", _RESULT, metavar="FILE", show_default=False),
]
Store = Annotated[
    bool,
    _flag(
        "--store",
        "Keep a short report with the model: hearth serve shows it, and compares its start with "
        "the best tokens in it.",
        _RESULT,
    ),
]


def quality(  # noqa: PLR0913, PLR0917 -- the parameters are the flags
    model: MeasuredModel,
    against: Against = "",
    against_quantize: AgainstQuantize = "none",
    text: Text = "builtin",
    tokens: Tokens = 20_000,
    context: ContextTokens = 512,
    answers: Answers = 8,
    answer_tokens: AnswerTokens = 64,
    layers: Layers = True,
    as_json: AsJson = False,
    plot: Plot = None,
    store: Store = False,
    dtype: flag.Dtype = "auto",
    quantize: flag.Quantize = "none",
    activations: flag.Activations = "auto",
    quantize_group_size: flag.QuantizeGroupSize = DEFAULT_CODES.group_size,
    kv_cache_dtype: flag.KvCacheDtype = "auto",
    max_model_len: flag.MaxModelLen = None,
    window: flag.Window = None,
    weight_cache_dir: flag.WeightCacheDir = "",
    weight_cache_bytes: flag.WeightCacheBytes = None,
    executor: flag.Executor = "auto",
    threads: flag.Threads = None,
    isa: flag.Isa = "auto",
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Measure what a model's quantization costs, as it would be served, against a reference.

    Perplexity, KL divergence, the same best tokens, greedy answers, and the layers that lose most.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported
    from hearth.cli.settings import find_model
    from hearth.quant.quality import QualityRequest

    _check_svg(plot)
    path = find_model(model)
    own = EngineConfig(
        model=ModelConfig(
            path=str(path),
            dtype=dtype,
            quantize=quantize,
            codes=CodesConfig(activations, quantize_group_size),
            max_model_len=max_model_len,
            window=window,
        ),
        device=DeviceConfig(threads, executor, isa),
        cache=CacheConfig(dtype=kv_cache_dtype),
        weight_cache=WeightCacheConfig(weight_cache_dir, weight_cache_bytes),
    )
    reference = _reference(own, against, against_quantize)
    request = QualityRequest(
        own, reference, text, context, tokens, answers, answer_tokens, with_layers=layers
    )
    _show(_measured(request), as_json=as_json, plot=plot, store=store)


def _reference(own: EngineConfig, against: str, scheme: str) -> EngineConfig | None:
    """What MODEL is compared with. Raises ConfigError where that has to be said."""
    from dataclasses import replace

    from hearth.cli.settings import find_model
    from hearth.models.config_json import read_config
    from hearth.models.stored import KEY

    if against == NOTHING:
        return None
    path = find_model(against) if against else Path(own.model.path)
    if not against and read_config(path).values.get(KEY):
        raise ConfigError(
            f"{path} is quantized itself: what it is compared with must be named",
            hint="--against REF, the model that it was made from; --against none measures its "
            "perplexity alone",
        )
    codes = own.model.codes if scheme != "none" else DEFAULT_CODES
    dtype = own.model.dtype if against else "auto"
    model = replace(own.model, path=str(path), quantize=scheme, codes=codes, dtype=dtype)
    # Keys and values as the weights have them: what MODEL has otherwise is part of its loss.
    reference = replace(own, model=model, cache=CacheConfig())
    return reference if against or reference != own else None


def _check_svg(path: Path | None) -> None:
    """Before the measuring, not after it. Raises ConfigError."""
    if path is None:
        return
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"--plot {path}: permitted: a file whose name ends in .svg")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no directory {path.parent}")


def _measured(request: QualityRequest) -> Quality:
    from hearth.cli.quality_view import QualityProgress
    from hearth.quant.quality import measure_quality

    with QualityProgress() as progress:
        return measure_quality(request, progress)


def _show(quality: Quality, *, as_json: bool, plot: Path | None, store: bool) -> None:
    from hearth.cli import quality_view as view

    (view.write_json if as_json else view.write_table)(quality)
    if plot is not None:
        view.write_plot(quality, plot)
    if store and quality.is_whole:
        view.store(quality)
    if not quality.is_whole:
        raise typer.Exit(INTERRUPTED)
