"""hearth beside other engines on one CPU: the same model, in turns, with the machine's limits.

    python -m benchmarks.peers install [ENGINE …]   each engine into an environment of its own
    python -m benchmarks.peers run [ENGINE …] [--repeats 5] [--out docs/benchmarks]
    python -m benchmarks.peers report FILE [--min-bandwidth 31] [--max-others 0.1]

`run` makes the forms of the model that are missing. What is downloaded, built or converted lies in
--cache-dir, outside the repository. See benchmarks/README.md. Never asserts a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from benchmarks.ceilings import DEFAULT_CACHE_DIR, running_ceilings
from benchmarks.peers import models
from benchmarks.peers.engines import DEFAULT_ENGINES, ENGINES
from benchmarks.peers.environments import ENVIRONMENTS, install
from benchmarks.peers.limits import scheme_of
from benchmarks.peers.record import record
from benchmarks.peers.report import write
from benchmarks.peers.rows import row_specs
from benchmarks.peers.session import Sample, Session, rounds
from benchmarks.peers.summary import Quiet


def parse_arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("install", "make the environments and the forms of the model"),
        ("run", "measure"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("engines", nargs="*", default=list(DEFAULT_ENGINES))
        command.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    command.add_argument("--repeats", type=int, default=5)
    command.add_argument("--rows", default="", help="such as decode-1,streams-8; default: all")
    command.add_argument("--stream-prompt", type=int, default=64, help="its tokens")
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--hearth-flags", default="", help="more, for hearth serve")
    report = commands.add_parser("report", help="the table anew from a record")
    report.add_argument("file", type=Path)
    for one in (command, report):
        one.add_argument("--min-bandwidth", type=float, default=0.0, help="GB/s around a sample")
        one.add_argument("--max-others", type=float, default=math.inf, help="cores, in a sample")
        one.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    unknown = set(getattr(options, "engines", ())) - set(ENGINES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ENGINES)}")
    return options


def prepare(options: argparse.Namespace, *, is_install: bool) -> None:
    """Environments where asked, and the forms of the model."""
    specs = [ENGINES[name] for name in options.engines]
    if is_install:
        for environment in dict.fromkeys(spec.environment for spec in specs):
            if environment in ENVIRONMENTS:
                install(environment, options.cache_dir)
    for variant in dict.fromkeys(spec.variant for spec in specs):
        models.make(variant, options.cache_dir)


def run(options: argparse.Namespace) -> None:
    """Measures; what there is after each sample stands in the cache directory."""
    chosen = options.rows.split(",") if options.rows else None
    rows = tuple(r for r in row_specs(options.stream_prompt) if chosen is None or r.name in chosen)
    if not rows:
        names = ", ".join(row.name for row in row_specs(options.stream_prompt))
        raise SystemExit(f"--rows names none of {names}")
    session = Session(
        engines=tuple(ENGINES[name] for name in options.engines),
        rows=rows,
        repeats=options.repeats,
        threads=options.threads,
        cache_dir=options.cache_dir,
        scheme=scheme_of(models.path_of("hf", options.cache_dir)),
        hearth_flags=tuple(options.hearth_flags.split()),
    )
    samples: list[Sample] = []
    partial = options.cache_dir / "peers-partial.json"
    with running_ceilings(options.threads, options.cache_dir) as ceilings:
        for sample in rounds(session, ceilings):
            samples.append(sample)
            partial.write_text(json.dumps(record(session, samples)), encoding="utf-8")
            figures = "  ".join(f"{name} {value:.2f}" for name, value in sample.figures.items())
            print(
                f"{sample.round} {sample.engine:14} {figures}  "
                f"({sample.ceiling.read_gb_s_median:.1f} GB/s, others {sample.others_cores:.2f})",
                file=sys.stderr,
                flush=True,
            )
    print(write(record(session, samples), options.out, quiet_of(options)))


def quiet_of(options: argparse.Namespace) -> Quiet:
    """Which samples count."""
    return Quiet(options.min_bandwidth, options.max_others)


def main() -> None:
    """See the module's docstring."""
    options = parse_arguments()
    if options.command == "report":
        body = json.loads(options.file.read_text(encoding="utf-8"))
        print(write(body, options.out, quiet_of(options)))
        return
    prepare(options, is_install=options.command == "install")
    if options.command == "run":
        run(options)


if __name__ == "__main__":
    main()
