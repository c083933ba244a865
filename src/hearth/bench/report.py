"""The result as people read it and as programs do; names are those of `vllm bench serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hearth import __version__
from hearth.bench.metrics import Spread, Summary
from hearth.bench.records import Record
from hearth.bench.settings import DatasetChoice, Load, Query

_WIDTH = 62
BUSY_CLIENT = 0.7
MANY_TOGETHER = 0.1
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run and what it was asked to do."""

    base_url: str
    query: Query
    load: Load
    dataset: DatasetChoice
    objectives: Mapping[str, float]
    summary: Summary
    records: Sequence[Record]
    client_cpu: float = 0.0  # cores that this side used while the load ran


def report_lines(run: Run, metrics: Sequence[str]) -> list[str]:
    """The table for a terminal."""
    found = run.summary
    rows: list[tuple[str, str]] = [
        ("Successful requests:", f"{found.num_completed}"),
        ("Failed requests:", f"{found.num_failed}"),
        ("Request rate configured (RPS):", f"{run.load.request_rate:g}"),
        ("Maximum request concurrency:", f"{run.load.max_concurrency or 'unbounded'}"),
        ("Peak concurrent requests:", f"{found.max_concurrency}"),
        ("Benchmark duration (s):", f"{found.duration_s:.2f}"),
        ("Total input tokens:", f"{found.num_input_tokens}"),
        ("Total generated tokens:", f"{found.num_output_tokens}"),
        ("Request throughput (req/s):", f"{found.request_throughput:.2f}"),
        ("Output token throughput (tok/s):", f"{found.output_throughput:.2f}"),
        ("Total token throughput (tok/s):", f"{found.total_token_throughput:.2f}"),
    ]
    if found.goodput is not None:
        shown = " ".join(f"{name}:{limit:g}" for name, limit in run.objectives.items())
        rows.append((f"Request goodput (req/s; {shown}):", f"{found.goodput:.2f}"))
    lines = [" Serving Benchmark Result ".center(_WIDTH, "=")]
    lines.extend(_line(*row) for row in rows)
    for name in metrics:
        if name in found.spreads:
            lines.append(_TITLES[name].center(_WIDTH, "-"))
            lines.extend(_spread_lines(name.upper(), found.spreads[name]))
    lines.append("=" * _WIDTH)
    lines.extend(f"failed {count} ×: {error}" for error, count in found.failures.items())
    lines.extend(_doubts(run))
    if not found.is_counted_by_server:
        lines.append("note: the server gave no usage; output tokens are counted by its events")
    return lines


def _doubts(run: Run) -> list[str]:
    """What makes the figures say less about the server than they seem to."""
    found = run.summary
    lines: list[str] = []
    if run.client_cpu > BUSY_CLIENT:
        lines.append(
            f"note: this client used {run.client_cpu:.0%} of a core while it measured; latencies "
            "are partly its own (use fewer streams, or several clients)"
        )
    if found.share_together > MANY_TOGETHER:
        lines.append(
            f"note: {found.share_together:.0%} of the events arrived together with the one before; "
            "then the median ITL says little, its mean and TPOT are not affected"
        )
    return lines


def result_json(run: Run, *, is_detailed: bool) -> str:
    """The result as one JSON object; `is_detailed` adds a list for every request."""
    found = run.summary
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "hearth_version": __version__,
        "backend": run.query.backend,
        "base_url": run.base_url,
        "model_id": run.query.model,
        "dataset_name": run.dataset.name,
        "num_prompts": run.load.num_prompts,
        "request_rate": _finite(run.load.request_rate),
        "burstiness": run.load.burstiness,
        "max_concurrency": run.load.max_concurrency,
        "seed": run.load.seed,
        "duration": found.duration_s,
        "completed": found.num_completed,
        "failed": found.num_failed,
        "total_input_tokens": found.num_input_tokens,
        "total_output_tokens": found.num_output_tokens,
        "request_throughput": found.request_throughput,
        "request_goodput": found.goodput,
        "goodput_objectives_ms": dict(run.objectives),
        "output_throughput": found.output_throughput,
        "total_token_throughput": found.total_token_throughput,
        "max_concurrent_requests": found.max_concurrency,
        "client_cpu_cores": run.client_cpu,
        "share_of_events_together": found.share_together,
        "output_tokens_counted_by": "server" if found.is_counted_by_server else "events",
        "failures": dict(found.failures),
    }
    for name, spread in found.spreads.items():
        result.update(_spread_fields(name, spread))
    if is_detailed:
        result.update(_details(run.records))
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def _spread_fields(name: str, spread: Spread) -> dict[str, float]:
    return {
        f"mean_{name}_ms": spread.mean,
        f"median_{name}_ms": spread.median,
        f"std_{name}_ms": spread.std,
        **{f"p{p:g}_{name}_ms": value for p, value in spread.percentiles.items()},
    }


def _details(records: Sequence[Record]) -> dict[str, list[Any]]:
    start = min((record.started_s for record in records), default=0.0)
    return {
        "input_lens": [record.num_input_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "start_times": [record.started_s - start for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [record.itls_s for record in records],
        "latencies": [max(0.0, record.latency_s) for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def _spread_lines(name: str, spread: Spread) -> list[str]:
    return [
        _line(f"Mean {name} (ms):", f"{spread.mean:.2f}"),
        _line(f"Median {name} (ms):", f"{spread.median:.2f}"),
        _line(f"Std {name} (ms):", f"{spread.std:.2f}"),
        *(_line(f"P{p:g} {name} (ms):", f"{v:.2f}") for p, v in spread.percentiles.items()),
    ]


def _line(name: str, value: str) -> str:
    return f"{name:<48}{value:>14}"


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return "inf" if value == float("inf") else value
