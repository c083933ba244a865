"""From samples to the table: medians with quartiles, ratios of paired rounds, limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.limits import Scheme, limit
from benchmarks.peers.rows import FIRST, LESS_IS_BETTER, RowSpec, spread
from benchmarks.peers.session import Sample

OURS = "hearth"
MEMORY = "memory"
TITLES = {FIRST.name: FIRST.title, MEMORY: "peak memory, GiB"}


@dataclass(frozen=True)
class RowSummary:
    """One line of the table; spreads are those of `rows.spread`."""

    name: str
    title: str
    engines: Mapping[str, Mapping[str, Any]]
    ratios: Mapping[str, Mapping[str, Any]]  # by pairs of a round; > 1: hearth is better
    best_peer: str | None
    limit: float | None
    share_of_limit: Mapping[str, Any] | None  # hearth's, by round

    @property
    def ratio_to_best(self) -> Mapping[str, Any] | None:
        """Against the peer with the best median."""
        return self.ratios[self.best_peer] if self.best_peer else None


@dataclass(frozen=True)
class Quiet:
    """What a sample must have had to count."""

    min_bandwidth: float = 0.0  # GB/s around it, median pass
    max_others: float = math.inf  # cores that other processes kept busy

    def __str__(self) -> str:
        return f"below {self.min_bandwidth:g} GB/s, or beside {self.max_others:g} busy cores"


def kept(samples: Sequence[Sample], quiet: Quiet) -> list[Sample]:
    """Those that are whole and were not disturbed."""
    return [
        s
        for s in samples
        if not s.error
        and s.ceiling.read_gb_s_median >= quiet.min_bandwidth
        and s.others_cores <= quiet.max_others
    ]


def summaries(
    samples: Sequence[Sample], rows: Sequence[RowSpec], scheme: Scheme, kv_tokens: int
) -> list[RowSummary]:
    """All lines, in the order of the table."""
    specs: dict[str, RowSpec | None] = {row.name: row for row in rows}
    specs |= dict.fromkeys(TITLES)
    titles = {**{row.name: row.title for row in rows}, **TITLES}
    return [
        _summary(name, titles[name], samples, _limits(spec, name, samples, scheme, kv_tokens))
        for name, spec in specs.items()
    ]


def _limits(
    spec: RowSpec | None, name: str, samples: Sequence[Sample], scheme: Scheme, kv_tokens: int
) -> dict[int, float]:
    """Of each round; none of the start, which has no such arithmetic."""
    ours = [s for s in samples if s.engine == OURS]
    if spec is not None:
        return {s.round: limit(spec, scheme, s.ceiling) for s in ours}
    if name == MEMORY:
        needed = scheme.stored_bytes + kv_tokens * scheme.kv_bytes
        return {s.round: needed / 2**30 for s in ours}
    return {}


def _summary(
    name: str, title: str, samples: Sequence[Sample], limits: Mapping[int, float]
) -> RowSummary:
    by_engine: dict[str, dict[int, float]] = {}
    for sample in samples:
        if name in sample.figures:
            by_engine.setdefault(sample.engine, {})[sample.round] = sample.figures[name]
    is_less_better = name in LESS_IS_BETTER
    ours = by_engine.get(OURS, {})
    peers = {engine: values for engine, values in by_engine.items() if engine != OURS}
    engines = {engine: spread(list(values.values())) for engine, values in by_engine.items()}
    ratios = {
        peer: spread(
            [
                (values[r] / ours[r] if is_less_better else ours[r] / values[r])
                for r in sorted(ours.keys() & values.keys())
            ]
        )
        for peer, values in peers.items()
    }
    sign = -1 if is_less_better else 1
    best = max(peers, key=lambda peer: sign * engines[peer]["median"], default=None)
    shares = [
        limits[r] / ours[r] if is_less_better else ours[r] / limits[r] for r in ours if r in limits
    ]
    return RowSummary(
        name,
        title,
        engines,
        ratios,
        best,
        spread(list(limits.values()))["median"],
        spread(shares) if shares else None,
    )
