"""The throughput rows as bars: each engine's share of the limit of hearth's scheme. SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.peers.summary import RowSummary

_LEFT, _WIDTH, _BAR, _GAP, _TOP = 150, 520, 14, 18, 60
_COLORS = ("#d1495b", "#30638e", "#7a9e7e", "#edae49", "#8d96a3", "#66418f", "#00798c")
_STYLE = "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.g{stroke:#ddd}.e{stroke:#222}"


def chart(lines: Sequence[RowSummary], engines: Mapping[str, Any]) -> str:
    """Rows without a limit are left out; the whiskers are the quartiles."""
    rows = [line for line in lines if line.limit and line.name != "memory"]
    group = len(engines) * _BAR + _GAP
    height = _TOP + len(rows) * group + 30
    width = _LEFT + _WIDTH + 90
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}"><style>{_STYLE}</style>'
        ),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(engines),
        *_grid(height - 24),
    ]
    for index, line in enumerate(rows):
        y = _TOP + index * group
        title = escape(line.title.removesuffix(", tokens/s"))
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + group / 2 - 6}" text-anchor="end">{title}</text>'
        )
        for number, name in enumerate(engines):
            if name in line.engines:
                parts += _bar(line, name, y + number * _BAR, _COLORS[number % len(_COLORS)])
    return "\n".join([*parts, "</svg>", ""])


def _legend(engines: Mapping[str, Any]) -> list[str]:
    parts = ['<text class="t" x="8" y="18">Throughput by the limit of hearth\'s scheme</text>']
    x = 8
    for number, engine in enumerate(engines.values()):
        color = _COLORS[number % len(_COLORS)]
        parts.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="38">{escape(engine["title"])}</text>')
        x += 26 + 7 * len(engine["title"])
    return parts


def _grid(bottom: int) -> list[str]:
    parts = []
    for percent in range(0, 101, 20):
        x = _LEFT + _WIDTH * percent / 100
        parts.append(f'<line class="g" x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{percent} %</text>')
    return parts


def _bar(line: RowSummary, name: str, y: float, color: str) -> list[str]:
    assert line.limit
    values = line.engines[name]
    low, middle, high = (_WIDTH * values[key] / line.limit for key in ("q1", "median", "q3"))
    end = _LEFT + max(middle, high) + 6
    center = y + _BAR / 2 - 1
    left, right = _LEFT + low, _LEFT + high
    return [
        f'<rect x="{_LEFT}" y="{y}" width="{middle:.1f}" height="{_BAR - 2}" fill="{color}"/>',
        f'<line class="e" x1="{left:.1f}" y1="{center}" x2="{right:.1f}" y2="{center}"/>',
        f'<text x="{end:.1f}" y="{y + _BAR - 4}">{values["median"]:.3g}</text>',
    ]
