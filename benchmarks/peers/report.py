"""The record of a comparison in JSON, and the page that people read."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.ceilings import Ceiling
from benchmarks.machine import machine
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.environments import ENVIRONMENTS, versions
from benchmarks.peers.limits import Scheme
from benchmarks.peers.plot import chart
from benchmarks.peers.rows import RowSpec
from benchmarks.peers.session import Sample, Session, commands
from benchmarks.peers.summary import OURS, Quiet, RowSummary, kept, summaries

from hearth import __version__

_ROOT = Path(__file__).parents[2]
_SETTING = (
    "One model: random weights, Llama-shaped, 1.47 billion parameters. Greedy, prompts distinct "
    "and of fixed length, prefix cache and speculation off. Engines take turns within a round and "
    "are started anew in each; medians, in brackets the quartiles. Decoding counts the steps in "
    "which all streams take part. hearth is measured over HTTP, the others in their own process."
)
_READING = (
    "× best: hearth against the best other engine, by pairs of one round; above 1 hearth is "
    "better. Limit: what hearth's scheme cannot exceed by the bytes it reads, its int8 and its "
    "float32 operations, at the ceilings measured around each of its rounds; it is hearth's limit "
    "alone, since the others read other numbers of bytes. Of memory: packed weights and KV."
)


def record(session: Session, samples: Sequence[Sample]) -> dict[str, Any]:
    """Everything that a reader needs to judge the figures or to make others of them."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": session.threads,
        "rows": [asdict(row) for row in session.rows],
        "scheme": asdict(session.scheme),
        "kv_tokens": session.kv_tokens,
        "engines": {
            spec.name: {
                "title": spec.title,
                "scheme": spec.scheme,
                "versions": _versions(spec.environment, session.cache_dir),
                "command": commands(session)[spec.name],
                "facts": next((s.facts for s in samples if s.engine == spec.name and s.facts), {}),
            }
            for spec in session.engines
        },
        "samples": [asdict(sample) for sample in samples],
    }


@functools.cache
def _versions(environment: str, cache_dir: Path) -> dict[str, str]:
    if environment in ENVIRONMENTS:
        return versions(environment, cache_dir)
    git = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return {"hearth": __version__, "commit": done.stdout.strip()}


def read_samples(body: Mapping[str, Any]) -> list[Sample]:
    """The samples of a record."""
    return [
        Sample(**{**sample, "ceilings": [Ceiling(**c) for c in sample["ceilings"]]})
        for sample in body["samples"]
    ]


def read_rows(body: Mapping[str, Any]) -> list[RowSpec]:
    """The rows of a record."""
    return [RowSpec(**row) for row in body["rows"]]


def page(body: Mapping[str, Any], lines: Sequence[RowSummary], quiet: Quiet) -> str:
    """Markdown."""
    samples = read_samples(body)
    used = kept(samples, quiet)
    where = body["machine"]
    parts = [
        "# hearth and its peers on one CPU",
        "",
        (
            f"{body['date'][:10]}, {where['processor']}, {body['threads']} threads, "
            f"{', '.join(where['features'])}, {where['memory_gib']} GiB, Linux {where['kernel']}."
        ),
        _SETTING,
        "",
        *_table(lines, list(body["engines"])),
        "",
        _READING,
        "",
        *_disturbances(samples, used, quiet),
        "",
        "![Share of the limit](peers.svg)",
        "",
        "## What each engine ran",
        "",
        "| engine | versions | weights read a step | scheme |",
        "|---|---|---|---|",
    ]
    for name, engine in body["engines"].items():
        found = ", ".join(f"{k} {v}" for k, v in engine["versions"].items())
        size = engine["facts"].get("weight_bytes")
        if name == OURS:
            size = body["scheme"]["body_bytes"] + body["scheme"]["head_bytes"]
        shown = f"{size / 1e9:.2f} GB" if size else "–"
        parts.append(f"| {engine['title']} | {found} | {shown} | {engine['scheme']} |")
    parts += [
        "",
        "Of the peers it is the size of the file, an embedding that is not read included.",
        "Commands, versions, ceilings and every single figure: [peers.json](peers.json).",
        "How to run it: `benchmarks/README.md`.",
        "",
    ]
    return "\n".join(parts)


def _table(lines: Sequence[RowSummary], engines: Sequence[str]) -> list[str]:
    titles = [ENGINES[name].title if name in ENGINES else name for name in engines]
    head = ["", *titles, "limit", "hearth ÷ limit", "× best"]
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for line in lines:
        cells = [_spread(line.engines.get(name)) for name in engines]
        limit = "–" if line.limit is None else _number(line.limit)
        share = line.share_of_limit
        ratio = line.ratio_to_best
        shown = "–" if not ratio or ratio["median"] is None else f"**{_spread(ratio)}**"
        percent = "–" if share is None else f"{100 * share['median']:.0f} %"
        table.append(f"| {line.title} | {' | '.join([*cells, limit, percent, shown])} |")
    return table


def _disturbances(samples: Sequence[Sample], used: Sequence[Sample], quiet: Quiet) -> list[str]:
    if not used:
        return ["No sample is left."]
    reads = sorted(s.ceiling.read_gb_s_median for s in used)
    others = sorted(s.others_cores for s in used)
    last = used[-1].ceiling
    best = max(s.ceiling.read_gb_s for s in used)
    text = (
        f"{len({s.round for s in used})} rounds. Memory read at {reads[0]:.1f} to {reads[-1]:.1f} "
        f"GB/s around the samples (median pass; the best {best:.1f}); int8 {last.int8_gop_s:.0f} "
        f"GOP/s, float32 {last.fp32_gflop_s:.0f} GFLOP/s. Other processes kept "
        f"{statistics.median(others):.2f} cores busy (median; the most {others[-1]:.2f})."
    )
    dropped = len(samples) - len(used)
    if dropped:
        text += f" Left out: {dropped} of {len(samples)} samples (failed, or {quiet})."
    return [text]


def _spread(values: Mapping[str, Any] | None) -> str:
    if not values or values["median"] is None:
        return "–"
    return f"{_number(values['median'])} [{_number(values['q1'])}–{_number(values['q3'])}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(body: Mapping[str, Any], out: Path, quiet: Quiet) -> str:
    """peers.json, peers.md and peers.svg in a directory; returns the page."""
    lines = summaries(
        kept(read_samples(body), quiet),
        read_rows(body),
        Scheme(**body["scheme"]),
        body["kv_tokens"],
    )
    full = {**body, "summary": [asdict(line) for line in lines]}
    text = page(body, lines, quiet)
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
    (out / "peers.md").write_text(text, encoding="utf-8")
    (out / "peers.svg").write_text(chart(lines, body["engines"]), encoding="utf-8")
    return text
