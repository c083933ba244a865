"""`hearth bench`: load on a server that is running, and what its clients saw.

The flags are those of `vllm bench serve` where they mean the same. As in `serve`, the function's
parameters are the flags; the work is in `hearth.bench`. It is longer than other functions for that
alone: Typer knows no groups of parameters, and each way around (a signature put together at run
time) takes more code than it saves, and the types with it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hearth.cli import connection as to
from hearth.cli.config_file import Config
from hearth.cli.options import option
from hearth.core.errors import ConfigError

if TYPE_CHECKING:
    from hearth.bench.records import Record
    from hearth.bench.report import Run
    from hearth.bench.session import Order

_PATH = re.compile(r"/[!-~]*")
_MAX_BURSTINESS = 1e6  # as even as a clock; beyond that floats end
_LOAD, _DATA, _RESULT = "Load", "Prompts", "Result"


def _flag(name: str, text: str, panel: str, **settings: Any) -> Any:
    return option(name, text, prefix="BENCH_", rich_help_panel=panel, **settings)


def bench(  # noqa: PLR0913, PLR0917 -- see the module's docstring
    more_objectives: Annotated[
        list[str] | None, typer.Argument(hidden=True, metavar="", show_default=False)
    ] = None,
    base_url: to.BaseUrl = to.DEFAULT_URL,
    model: to.ModelName = None,
    api_key: to.ApiKey = None,
    backend: Annotated[
        Literal["openai-chat", "openai"],
        _flag("--backend", "Chat completions, or plain completions.", _LOAD),
    ] = "openai-chat",
    endpoint: Annotated[
        str | None,
        _flag("--endpoint", "Path of the endpoint. Default: the backend's.", _LOAD),
    ] = None,
    num_prompts: Annotated[int, _flag("--num-prompts", "Requests in all.", _LOAD, min=1)] = 100,
    request_rate: Annotated[
        float,
        _flag("--request-rate", "Arrivals a second; inf sends all at once.", _LOAD),
    ] = float("inf"),
    burstiness: Annotated[
        float,
        _flag("--burstiness", "1 is a Poisson process, less is burstier, more is even.", _LOAD),
    ] = 1.0,
    max_concurrency: Annotated[
        int | None,
        _flag("--max-concurrency", "Most requests in flight.", _LOAD, min=1, show_default=False),
    ] = None,
    num_warmups: Annotated[
        int, _flag("--num-warmups", "Requests before the measured ones.", _LOAD, min=0)
    ] = 0,
    seed: Annotated[int, _flag("--seed", "Seed of prompts and arrivals.", _LOAD)] = 0,
    request_timeout: Annotated[
        float,
        _flag("--request-timeout", "Seconds without a byte after which a request failed.", _LOAD),
    ] = 600.0,
    dataset_name: Annotated[
        Literal["random", "jsonl", "conversation"],
        _flag(
            "--dataset-name",
            "Made-up texts; a file; or an agent's conversations that grow turn by turn.",
            _DATA,
        ),
    ] = "random",
    dataset_path: Annotated[
        str | None,
        _flag("--dataset-path", 'File with {"prompt": "…"} or {"messages": […]} a line.', _DATA),
    ] = None,
    random_input_len: Annotated[
        int, _flag("--random-input-len", "Tokens of a prompt or message.", _DATA, min=1)
    ] = 256,
    random_output_len: Annotated[
        int, _flag("--random-output-len", "Tokens of an answer.", _DATA, min=1)
    ] = 64,
    random_range_ratio: Annotated[
        float,
        _flag("--random-range-ratio", "Lengths vary by this share.", _DATA, min=0, max=0.999),
    ] = 0.0,
    conversation_turns: Annotated[
        int, _flag("--conversation-turns", "Requests of a conversation.", _DATA, min=1)
    ] = 4,
    tokenizer: Annotated[
        str | None,
        _flag("--tokenizer", "Model directory. Default: the server's /tokenize.", _DATA),
    ] = None,
    ignore_eos: Annotated[
        bool | None,
        _flag(
            "--ignore-eos/--no-ignore-eos",
            "Answers of full length. Default: on for made-up texts.",
            _DATA,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, _flag("--temperature", "Sampling temperature of every request.", _DATA, min=0)
    ] = 0.0,
    extra_body: Annotated[
        str | None,
        _flag("--extra-body", "JSON object with more fields of a request.", _DATA),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        _flag(
            "--goodput",
            "Objectives in milliseconds: ttft:500 tpot:100 e2el:9000.",
            _RESULT,
            metavar="NAME:MS…",
            show_default=False,
        ),
    ] = None,
    percentile_metrics: Annotated[
        str, _flag("--percentile-metrics", "Metrics to show.", _RESULT)
    ] = "ttft,tpot,itl,e2el",
    metric_percentiles: Annotated[
        str, _flag("--metric-percentiles", "Percentiles to show.", _RESULT)
    ] = "99",
    save_result: Annotated[
        Path | None,
        _flag("--save-result", "Write the result to this JSON file.", _RESULT, metavar="FILE"),
    ] = None,
    save_detailed: Annotated[
        bool,
        _flag("--save-detailed", "With it, a list of every request's figures.", _RESULT),
    ] = False,
    plot: Annotated[
        Path | None,
        _flag("--plot", "Write a plot to this SVG file.", _RESULT, metavar="FILE"),
    ] = None,
    config: Config = None,  # noqa: ARG001 -- read before all others
) -> None:
    """Put load on a running server and measure latency, throughput and goodput.

    Works with every OpenAI-compatible server. Exit code 1: some requests failed.
    """
    from hearth.bench import settings
    from hearth.bench.session import Order
    from hearth.client.wire import Target

    if more_objectives and not goodput:
        raise ConfigError(f"{more_objectives[0]!r} is not expected here", hint="hearth bench -h")
    if save_detailed and save_result is None:
        raise ConfigError("--save-detailed needs a file", hint="add --save-result FILE")
    _check_load(request_rate, burstiness, request_timeout)
    _check_endpoint(endpoint)
    full_length = dataset_name != "jsonl" if ignore_eos is None else ignore_eos
    order = Order(
        target=Target(base_url, api_key, request_timeout),
        query=settings.Query(
            model or "", backend, endpoint, temperature, full_length, _object(extra_body)
        ),
        load=settings.Load(
            num_prompts, request_rate, burstiness, max_concurrency, num_warmups, seed
        ),
        dataset=settings.DatasetChoice(
            dataset_name,
            dataset_path,
            random_input_len,
            random_output_len,
            random_range_ratio,
            conversation_turns,
        ),
        tokenizer_dir=tokenizer,
        objectives=settings.parse_objectives([*(goodput or []), *(more_objectives or [])]),
        percentiles=settings.parse_percentiles(metric_percentiles),
    )
    metrics = settings.parse_metrics(percentile_metrics)
    for path in (save_result, plot):
        _check_writable(path)
    run = _run(order)
    _show(run, metrics)
    _save(run, save_result, plot, is_detailed=save_detailed)
    raise typer.Exit(1 if run.summary.num_failed else 0)


def _check_load(request_rate: float, burstiness: float, request_timeout: float) -> None:
    if not request_rate > 0 or not 0 < burstiness <= _MAX_BURSTINESS:
        raise ConfigError(
            f"--request-rate {request_rate:g} --burstiness {burstiness:g}: both must be above 0, "
            f"and --burstiness at most {_MAX_BURSTINESS:g}"
        )
    if not 0 < request_timeout < float("inf"):
        raise ConfigError(
            f"--request-timeout {request_timeout:g}: permitted is a number of seconds above 0"
        )


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is not None and not _PATH.fullmatch(endpoint):
        raise ConfigError(
            f"--endpoint {endpoint!r} is not a path", hint="such as --endpoint /v1/completions"
        )


def _run(order: Order) -> Run:
    import asyncio

    import uvloop

    from hearth.bench.session import run_benchmark

    progress = _Progress(order.load.num_prompts)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_benchmark(order, progress.note))
    finally:
        progress.end()


def _show(run: Run, metrics: tuple[str, ...]) -> None:
    from hearth.bench.report import report_lines

    print("\n".join(report_lines(run, metrics)))


def _save(run: Run, result: Path | None, plot: Path | None, *, is_detailed: bool) -> None:
    from hearth.bench.plot import plot_svg
    from hearth.bench.report import result_json

    if result is not None:
        result.write_text(result_json(run, is_detailed=is_detailed), encoding="utf-8")
    if plot is not None:
        plot.write_text(plot_svg(run), encoding="utf-8")


def _check_writable(path: Path | None) -> None:
    """Before the run, not after it."""
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no directory {path.parent}")
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", hint="name a file"
        ) from error


def _object(text: str | None) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"--extra-body {text!r} is not a JSON object")
    return found


class _Progress:
    """`37/100` on a terminal; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._num_done = self._num_failed = 0
        self._is_shown = sys.stderr.isatty()

    def note(self, record: Record) -> None:
        """One more request has ended."""
        self._num_done += 1
        self._num_failed += bool(record.error)
        if self._is_shown:
            failed = f", {self._num_failed} failed" if self._num_failed else ""
            print(f"\r{self._num_done}/{self._total}{failed}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Takes the line away."""
        if self._is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
