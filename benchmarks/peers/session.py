"""The rounds of a comparison: engines one after the other, A B C, B C A, …, ceilings in between.

An engine is loaded anew in every round and ended after it: no engine is idle, with threads that
may spin and memory that may be read, while another one is measured; and every round gives a start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ceilings import Ceiling, Ceilings, mean_of
from benchmarks.peers.limits import Scheme
from benchmarks.peers.models import CONFIG, FIRST_PLAIN_TOKEN, path_of
from benchmarks.peers.neighbours import moment
from benchmarks.peers.rows import FIRST, WARM_UP, RowSpec, figure, prompts_of
from benchmarks.peers.worker import EngineSpec, Worker, WorkerError

KV_BLOCK_TOKENS = 32


@dataclass(frozen=True)
class Session:
    """What one comparison asks."""

    engines: tuple[EngineSpec, ...]
    rows: tuple[RowSpec, ...]
    repeats: int
    threads: int
    cache_dir: Path
    scheme: Scheme
    hearth_flags: tuple[str, ...] = ()

    @property
    def max_len(self) -> int:
        """The longest sequence, a whole number of blocks."""
        longest = max(row.length for row in (*self.rows, FIRST, WARM_UP))
        return -(-longest // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS

    @property
    def kv_tokens(self) -> int:
        """What the KV cache must hold at once."""
        rows = (*self.rows, FIRST, WARM_UP)
        blocks = max(r.num_streams * -(-r.length // KV_BLOCK_TOKENS) for r in rows)
        return (blocks + 1) * KV_BLOCK_TOKENS

    def load_message(self, spec: EngineSpec) -> dict[str, Any]:
        """The message "load" of an engine."""
        options = dict(spec.options)
        if spec.name == "hearth":
            kv = ["--kv-cache-memory-bytes", str(self.kv_tokens * self.scheme.kv_bytes)]
            options["flags"] = [*options["flags"], *kv, *self.hearth_flags]
            options["cache_dir"] = str(self.cache_dir / "hearth-weights")
        return {
            "op": "load",
            "model": str(path_of(spec.variant, self.cache_dir)),
            "threads": self.threads,
            "max_len": self.max_len,
            "kv_tokens": self.kv_tokens,
            "max_streams": max(row.num_streams for row in self.rows),
            "options": options,
        }


@dataclass
class Sample:
    """One engine in one round."""

    engine: str
    round: int
    ceilings: list[Ceiling] = field(default_factory=list)  # before and after
    figures: dict[str, float] = field(default_factory=dict)  # by the name of the row
    totals_s: dict[str, float] = field(default_factory=dict)  # of the whole request
    facts: dict[str, Any] = field(default_factory=dict)
    others_cores: float = 0.0  # that other processes kept busy meanwhile
    error: str = ""

    @property
    def ceiling(self) -> Ceiling:
        """What holds for it."""
        return mean_of(self.ceilings)


def rounds(session: Session, ceilings: Ceilings) -> Iterator[Sample]:
    """Every sample when it is there; the first, unmeasured start of each engine comes before."""
    for spec in session.engines:
        print(f"warming up {spec.name}", file=sys.stderr, flush=True)
        warm_up(session, spec)
    for number in range(session.repeats):
        turn = number % len(session.engines)
        for spec in session.engines[turn:] + session.engines[:turn]:
            sample = Sample(spec.name, number, [ceilings.measure()])
            measure(session, spec, sample)
            sample.ceilings.append(ceilings.measure())
            yield sample


def warm_up(session: Session, spec: EngineSpec) -> None:
    """Fills page cache and the engine's own caches. Raises SystemExit where it cannot start."""
    worker = _started(session, spec)
    try:
        worker.ask(session.load_message(spec))
        worker.run(_prompts(FIRST, -1), FIRST.new_tokens)
        worker.ask({"op": "settle"})
    except WorkerError as error:
        raise SystemExit(f"{error}\nits log: {_log_of(session, spec)}") from error
    finally:
        worker.close()


def measure(session: Session, spec: EngineSpec, sample: Sample) -> None:
    """Fills a sample; an engine's failure ends its round and stands in the sample."""
    worker = _started(session, spec)
    before = moment()
    try:
        sample.facts = worker.ask(session.load_message(spec))["facts"]
        answer = worker.run(_prompts(FIRST, sample.round), FIRST.new_tokens)
        sample.figures[FIRST.name] = answer["arrivals"][0][0] - worker.spawned_at
        worker.run(_prompts(WARM_UP, sample.round), WARM_UP.new_tokens)
        for row in session.rows:
            answer = worker.run(_prompts(row, sample.round), row.new_tokens)
            begin, arrivals = answer["begin"], answer["arrivals"]
            sample.figures[row.name] = figure(row, begin, arrivals)
            sample.totals_s[row.name] = max(times[-1] for times in arrivals) - begin
        sample.others_cores = moment().others_since(before)
        sample.figures["memory"] = worker.ask({"op": "quit"})["peak_rss_bytes"] / 2**30
    except (WorkerError, ValueError) as error:
        sample.error = str(error)
        print(f"{spec.name}, round {sample.round}: {error}", file=sys.stderr, flush=True)
    finally:
        worker.close()


def commands(session: Session) -> dict[str, list[str]]:
    """How each worker is started and what it loads, for the record."""
    found = {}
    for spec in session.engines:
        message = session.load_message(spec)
        found[spec.name] = [f"workers/{spec.worker}.py", str(message["model"]), str(message)]
    return found


def _log_of(session: Session, spec: EngineSpec) -> Path:
    return session.cache_dir / "logs" / f"{spec.name}.log"


def _started(session: Session, spec: EngineSpec) -> Worker:
    log = _log_of(session, spec)
    log.parent.mkdir(parents=True, exist_ok=True)
    return Worker(spec, session.cache_dir, log)


def _prompts(row: RowSpec, seed: int) -> Sequence[Sequence[int]]:
    return prompts_of(row, seed + 1, FIRST_PLAIN_TOKEN, CONFIG["vocab_size"])
