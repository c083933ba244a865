"""The page that people read, beside the record that it is drawn from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import ENGINES
from benchmarks.peers.limits import Scheme
from benchmarks.peers.plot import chart
from benchmarks.peers.record import read_rows, read_samples
from benchmarks.peers.rows import DECODE
from benchmarks.peers.session import Sample
from benchmarks.peers.summary import Quiet, RowSummary, kept, summaries

_SETTING = (
    "One model: random weights, Llama-shaped, 1.47 billion parameters. Greedy, prompts distinct "
    "and of fixed length, prefix cache and speculation off. Engines take turns within a round and "
    "are started anew in each; medians, in brackets the quartiles. Decoding counts the steps in "
    "which all streams take part. hearth is measured over HTTP, the others in their own process."
)
_READING = (
    "× best: hearth against the best other engine, by pairs of one round; above 1 hearth is "
    "better. Limit: what hearth's scheme cannot exceed by the bytes it reads, its int8 "
    "operations and its attention, at the ceilings measured around each of its rounds; it is "
    "hearth's limit alone, since the others read other numbers of bytes. Of memory: packed weights "
    "and KV."
)


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
        *_engines(body["engines"], lines),
        "",
        "A step reads all weights but the embedding; reads: that, by the rate of one stream.",
        "Commands, versions, ceilings and every single figure: [peers.json](peers.json).",
        "How to run it: `benchmarks/README.md`.",
        "",
    ]
    return "\n".join(parts)


def _engines(engines: Mapping[str, Any], lines: Sequence[RowSummary]) -> list[str]:
    table = ["| engine | versions | weights a step | reads | scheme |", "|---|---|---|---|---|"]
    decode = next((line.engines for line in lines if line.name == DECODE), {})
    for name, engine in engines.items():
        found = ", ".join(f"{k} {v}" for k, v in engine["versions"].items())
        size = engine["bytes_a_step"] / 1e9
        rate = f"{size * decode[name]['median']:.1f} GB/s" if name in decode else "–"
        cells = [engine["title"], found, f"{size:.2f} GB", rate, engine["scheme"]]
        table.append(f"| {' | '.join(cells)} |")
    return table


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
        f"GOP/s, float32 {last.fp32_gflop_s:.0f} GFLOP/s, pairs of bfloat16 "
        f"{last.pair_gflop_s:.0f}. Other processes kept {statistics.median(others):.2f} cores "
        f"busy (median; the most {others[-1]:.2f})."
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
    record = json.dumps(full, indent=1).replace(f"{Path.home()}/", "~/")
    (out / "peers.json").write_text(record + "\n", encoding="utf-8")
    (out / "peers.md").write_text(text, encoding="utf-8")
    (out / "peers.svg").write_text(chart(lines, body["engines"]), encoding="utf-8")
    return text
