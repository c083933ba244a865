"""The plot of a run, as an SVG.

Three cumulative distributions (TTFT, ITL, E2EL: the share of samples below a time) and the number
of requests in flight over the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from hearth.bench.metrics import concurrency_curve, percentile, samples_ms
from hearth.bench.panels import Panel, figure
from hearth.bench.report import Run

MAX_POINTS = 400
_TITLES = {"ttft": "Time to first token", "itl": "Inter-token latency", "e2el": "End-to-end"}


def plot_svg(run: Run) -> str:
    """The whole file."""
    done = [record for record in run.records if not record.error]
    panels = [_distribution(name, samples_ms(done, name)) for name in _TITLES]
    curve = concurrency_curve(run.records)
    start = curve[0][0] if curve else 0.0
    steps = [(moment - start, float(count)) for moment, count in curve]
    panels.append(Panel("Requests in flight", "s", _stairs(steps)))
    found = run.summary
    head = (
        f"{run.query.model}: {found.num_completed} completed, {found.num_failed} failed, "
        f"{found.output_throughput:.1f} output tok/s, {found.request_throughput:.2f} req/s"
    )
    return figure(head, panels)


def _distribution(name: str, samples: Sequence[float]) -> Panel:
    ordered = sorted(samples)
    last = max(1, len(ordered) - 1)
    stride = max(1, len(ordered) // MAX_POINTS)
    points = [(ordered[i], 100 * i / last) for i in range(0, len(ordered), stride)]
    marks = [(percentile(ordered, p), f"p{p}") for p in (50, 99)] if ordered else []
    points.extend([(ordered[-1], 100.0)] if ordered else [])
    return Panel(f"{_TITLES[name]} (% of samples below)", "ms", points, marks)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A level stays until the next one."""
    found: list[tuple[float, float]] = []
    for moment, level in points:
        found.extend([(moment, found[-1][1] if found else 0.0), (moment, level)])
    return found
