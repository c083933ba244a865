"""The plot of a run, as an SVG written by hand: four curves need no plotting library.

Three cumulative distributions (TTFT, ITL, E2EL: the share of samples below a time) and the number
of requests in flight over the run. Text is text, so the file can be searched and is a few KB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hearth.bench.metrics import concurrency_curve, percentile, samples_ms
from hearth.bench.report import Run

MAX_POINTS = 400
_PANEL_W, _PANEL_H, _GAP, _TOP = 420, 220, 60, 64
_TITLES = {"ttft": "Time to first token", "itl": "Inter-token latency", "e2el": "End-to-end"}
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}"
    ".g{stroke:#ddd;stroke-width:1}.c{fill:none;stroke:#c2410c;stroke-width:1.6}"
    ".m{stroke:#1d4ed8;stroke-width:1;stroke-dasharray:4 3}"
)


@dataclass(frozen=True, slots=True)
class _Panel:
    """A curve in its own units; `marks` are vertical lines with a label."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, str]] = ()


def plot_svg(run: Run) -> str:
    """The whole file."""
    done = [record for record in run.records if not record.error]
    panels = [_distribution(name, samples_ms(done, name)) for name in _TITLES]
    curve = concurrency_curve(run.records)
    start = curve[0][0] if curve else 0.0
    steps = [(moment - start, float(count)) for moment, count in curve]
    panels.append(_Panel("Requests in flight", "s", _stairs(steps)))
    width, height = 2 * (_PANEL_W + _GAP) + _GAP, _TOP + 2 * (_PANEL_H + _GAP) + 10
    found = run.summary
    head = (
        f"{run.query.model}: {found.num_completed} completed, {found.num_failed} failed, "
        f"{found.output_throughput:.1f} output tok/s, {found.request_throughput:.2f} req/s"
    )
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}"><style>{_STYLE}</style>'
        ),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="t" x="{_GAP}" y="28">{escape(head)}</text>',
    ]
    for index, panel in enumerate(panels):
        x = _GAP + (index % 2) * (_PANEL_W + _GAP)
        y = _TOP + (index // 2) * (_PANEL_H + _GAP)
        parts.append(f'<g transform="translate({x},{y})">{_draw(panel)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _distribution(name: str, samples: Sequence[float]) -> _Panel:
    ordered = sorted(samples)
    last = max(1, len(ordered) - 1)
    stride = max(1, len(ordered) // MAX_POINTS)
    points = [(ordered[i], 100 * i / last) for i in range(0, len(ordered), stride)]
    marks = [(percentile(ordered, p), f"p{p}") for p in (50, 99)] if ordered else []
    points.extend([(ordered[-1], 100.0)] if ordered else [])
    return _Panel(f"{_TITLES[name]} (% of samples below)", "ms", points, marks)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A level stays until the next one."""
    found: list[tuple[float, float]] = []
    for moment, level in points:
        found.extend([(moment, found[-1][1] if found else 0.0), (moment, level)])
    return found


def _draw(panel: _Panel) -> str:
    top_x = max((x for x, _ in panel.points), default=0.0) or 1.0
    top_y = max((y for _, y in panel.points), default=0.0) or 1.0

    def at(x: float, y: float) -> str:
        return f"{x / top_x * _PANEL_W:.1f},{_PANEL_H - y / top_y * _PANEL_H:.1f}"

    parts = [f'<text class="t" x="0" y="-8">{escape(panel.title)}</text>']
    for i in range(5):
        x, y = i * _PANEL_W / 4, _PANEL_H - i * _PANEL_H / 4
        parts.extend(
            [
                f'<line class="g" x1="0" y1="{y}" x2="{_PANEL_W}" y2="{y}"/>',
                f'<text x="-6" y="{y + 4}" text-anchor="end">{top_y * i / 4:.3g}</text>',
                (
                    f'<text x="{x}" y="{_PANEL_H + 16}" text-anchor="middle">'
                    f"{top_x * i / 4:.4g}{' ' + panel.unit if i == 4 else ''}</text>"
                ),
            ]
        )
    for x, label in panel.marks:
        place = f"{x / top_x * _PANEL_W:.1f}"
        parts.append(
            f'<line class="m" x1="{place}" y1="0" x2="{place}" y2="{_PANEL_H}"/>'
            f'<text x="{place}" y="12">{label} {x:.4g}</text>'
        )
    parts.append(f'<polyline class="c" points="{" ".join(at(*p) for p in panel.points)}"/>')
    return "".join(parts)
