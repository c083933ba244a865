"""From records to the figures that people compare: latencies, throughput, goodput."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hearth.bench.records import Record
from hearth.bench.settings import METRICS


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric's distribution in milliseconds; percentiles by their number."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run; throughput counts completed requests only.

    `goodput` is None where no objective was set, `spreads` is empty where nothing completed.
    `share_together`: of the events after a first one, those that the same read brought as the one
    before; whether the server wrote them together or this side read late cannot be told.
    """

    duration_s: float
    num_completed: int
    num_failed: int
    num_input_tokens: int
    num_output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    goodput: float | None
    max_concurrency: int
    is_counted_by_server: bool
    share_together: float
    spreads: Mapping[str, Spread]
    failures: Mapping[str, int]


def summarize(
    records: Sequence[Record],
    percentiles: Sequence[float],
    objectives: Mapping[str, float] | None = None,
) -> Summary:
    """The summary of one or more records; `objectives` are milliseconds by name."""
    done = [record for record in records if not record.error]
    ends = [record.ended_s for record in records if record.ended_s]
    duration = max(max(ends) - min(record.started_s for record in records), 1e-9) if ends else 0.0
    num_input = sum(record.num_input_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    good = [record for record in done if _is_good(record, objectives or {})]

    def rate(count: int) -> float:
        return count / duration if duration else 0.0

    return Summary(
        duration_s=duration,
        num_completed=len(done),
        num_failed=len(records) - len(done),
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        request_throughput=rate(len(done)),
        output_throughput=rate(num_output),
        total_token_throughput=rate(num_input + num_output),
        goodput=rate(len(good)) if objectives else None,
        max_concurrency=peak_concurrency(records),
        is_counted_by_server=all(record.is_counted_by_server for record in done),
        share_together=_share_together(done),
        spreads={name: spread(samples_ms(done, name), percentiles) for name in METRICS if done},
        failures=dict(Counter(record.error for record in records if record.error).most_common()),
    )


def samples_ms(records: Sequence[Record], metric: str) -> list[float]:
    """A metric's samples: one a request; for ITL one for every gap between two events.

    A time per output token needs a second one: answers of one token have none.
    """
    if metric == "ttft":
        found = [record.ttft_s for record in records]
    elif metric == "tpot":
        found = [record.tpot_s for record in records if record.num_output_tokens > 1]
    elif metric == "itl":
        found = [itl for record in records for itl in record.itls_s]
    else:
        found = [record.latency_s for record in records]
    return [1e3 * value for value in found]


def spread(samples: Sequence[float], percentiles: Sequence[float]) -> Spread:
    """Mean, median, standard deviation (of the population) and percentiles; zeros for none."""
    if not samples:
        return Spread(0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
    ordered = sorted(samples)
    return Spread(
        statistics.fmean(ordered),
        percentile(ordered, 50),
        statistics.pstdev(ordered),
        {p: percentile(ordered, p) for p in percentiles},
    )


def percentile(ordered: Sequence[float], p: float) -> float:
    """Linear interpolation between neighbours, as numpy's default."""
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def peak_concurrency(records: Sequence[Record]) -> int:
    """Most requests in flight at one moment."""
    peak = 0
    for _, count in concurrency_curve(records):
        peak = max(peak, count)
    return peak


def concurrency_curve(records: Sequence[Record]) -> list[tuple[float, int]]:
    """(time, requests in flight from then on); an end comes before a start at the same time."""
    sent = [record for record in records if record.ended_s]
    changes = sorted([(r.started_s, 1) for r in sent] + [(r.ended_s, -1) for r in sent])
    curve: list[tuple[float, int]] = []
    count = 0
    for moment, change in changes:
        count += change
        curve.append((moment, count))
    return curve


def _share_together(records: Sequence[Record]) -> float:
    itls = [itl for record in records for itl in record.itls_s]
    return itls.count(0.0) / len(itls) if itls else 0.0


def _is_good(record: Record, objectives: Mapping[str, float]) -> bool:
    """Whether a request met every objective."""
    found = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.latency_s}
    return all(1e3 * found[name] <= limit for name, limit in objectives.items())
