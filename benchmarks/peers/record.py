"""The record of a comparison: everything a reader needs to judge its figures or draw others."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.ceilings import Ceiling
from benchmarks.machine import machine
from benchmarks.peers.environments import ENVIRONMENTS, versions
from benchmarks.peers.models import CONFIG, path_of
from benchmarks.peers.rows import RowSpec
from benchmarks.peers.session import Sample, Session, commands
from benchmarks.peers.summary import OURS
from benchmarks.peers.worker import EngineSpec

from hearth import __version__

_ROOT = Path(__file__).parents[2]


def record(session: Session, samples: Sequence[Sample]) -> dict[str, Any]:
    """In plain values, for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": session.threads,
        "rows": [asdict(row) for row in session.rows],
        "scheme": asdict(session.scheme),
        "kv_tokens": session.kv_tokens,
        "engines": {spec.name: _engine(spec, session, samples) for spec in session.engines},
        "samples": [asdict(sample) for sample in samples],
    }


def _engine(spec: EngineSpec, session: Session, samples: Sequence[Sample]) -> dict[str, Any]:
    facts = next((s.facts for s in samples if s.engine == spec.name and s.facts), {})
    return {
        "title": spec.title,
        "scheme": spec.scheme,
        "bytes_a_step": _bytes_a_step(spec, session, facts),
        "versions": _versions(spec.environment, session.cache_dir),
        "command": commands(session)[spec.name],
        "facts": facts,
    }


def _bytes_a_step(spec: EngineSpec, session: Session, facts: Mapping[str, Any]) -> int:
    """Weights that a step of decoding reads: all but the embedding."""
    if spec.name == OURS:
        return session.scheme.weight_bytes
    files = path_of(spec.variant, session.cache_dir).glob("*.safetensors")
    total = int(facts.get("weight_bytes") or sum(file.stat().st_size for file in files))
    embedding: int = CONFIG["vocab_size"] * CONFIG["hidden_size"]
    return round(total - embedding * spec.embedding_bytes)


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
