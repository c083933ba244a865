"""Curves in panels, as an SVG written by hand: a few lines need no plotting library.

Text is text, so that a file can be searched and is a few KB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_PANEL_W, _PANEL_H, _GAP, _TOP = 420, 220, 60, 64
_COLUMNS = 2
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}"
    ".g{stroke:#ddd;stroke-width:1}.c{fill:none;stroke:#c2410c;stroke-width:1.6}"
    ".m{stroke:#1d4ed8;stroke-width:1;stroke-dasharray:4 3}"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A curve in its own units; `marks` are vertical lines with a label."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, str]] = ()


def figure(title: str, panels: Sequence[Panel]) -> str:
    """The whole file."""
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * (_PANEL_W + _GAP) + _GAP, _TOP + rows * (_PANEL_H + _GAP) + 10
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}"><style>{_STYLE}</style>'
        ),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="t" x="{_GAP}" y="28">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        x = _GAP + (index % _COLUMNS) * (_PANEL_W + _GAP)
        y = _TOP + (index // _COLUMNS) * (_PANEL_H + _GAP)
        parts.append(f'<g transform="translate({x},{y})">{_draw(panel)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _draw(panel: Panel) -> str:
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
