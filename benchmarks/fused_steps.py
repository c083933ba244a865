"""What fusing operations and splitting attention by keys save: milliseconds a step, side by side.

    python benchmarks/fused_steps.py [--threads 2] [--repeats 40] [--only tiny decode …]

Random weights. Two executors share them, one with everything fused and one op by op (for `long`:
attention split and not), and take turns step by step, so that both see the same machine. Shown:
barriers a step, the median and the tenth percentile of each, and the ratio of the medians.

  tiny     40 layers 64 wide: the fixed cost of a step
  decode   4 layers of the 1.47 B reference model, int4, 1 to 32 rows
  prefill  the same, 512 rows
  long     the same, one row behind a context of 32,000 tokens

The limits: `decode` reads each weight once (0.124 GB a step in int4); `tiny` needs no arithmetic to
speak of, so that its limit is the cost of its barriers. Never asserts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hearth.core.step import KvConfig, SamplingArrays, StepLimits, StepPlan
from hearth.kernels.cpu.executor import CpuExecutor, Split, Tiling
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.fuse import ALL_PATTERNS, Pattern
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.weights import load_weights

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 40,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 256,
}
REFERENCE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32768,
}
COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 40_000,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
BLOCK = 64


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    config: dict[str, int]
    rows: int
    sequences: int
    context: int = 64


CASES = (
    Case("tiny", TINY, 1, 1),
    Case("tiny", TINY, 32, 32),
    Case("decode", REFERENCE, 1, 1),
    Case("decode", REFERENCE, 8, 8),
    Case("decode", REFERENCE, 32, 32),
    Case("prefill", REFERENCE, 512, 1),
    Case("long", REFERENCE, 1, 1, 32_000),
)


def load(config: dict[str, int]) -> tuple[LoadedSpec, CpuWeights]:
    """A model with random int4 weights."""
    with tempfile.TemporaryDirectory() as path:
        (Path(path) / "config.json").write_text(json.dumps({**COMMON, **config}))
        loaded = load_model_spec(Path(path), "bfloat16", quantize="int4")
    weights = CpuWeights(loaded.program)
    load_weights(loaded, weights, "dummy", seed=1)
    return loaded, weights


def plan_of(case: Case) -> StepPlan:
    """Each sequence continues `context` tokens by its share of the rows, and wants one token."""
    share = case.rows // case.sequences
    blocks = -(-(case.context + share) // BLOCK)
    numbers = np.arange(case.sequences, dtype=np.int32)
    positions = np.tile(np.arange(case.context, case.context + share), case.sequences)
    owners = np.repeat(numbers, share)
    slots = (owners * blocks + positions // BLOCK) * BLOCK + positions % BLOCK
    ends = (numbers + 1) * share

    def floats(value: float) -> np.ndarray:
        return np.full(case.sequences, value, np.float32)

    return StepPlan(
        tokens=(np.arange(case.rows) % 251).astype(np.int32),
        positions=np.tile(positions, (3, 1)).astype(np.int32),
        row_start=np.concatenate(([0], ends)).astype(np.int32),
        context=np.full(case.sequences, case.context, np.int32),
        slots=slots.astype(np.int32).reshape(1, -1),
        blocks=np.arange(case.sequences * blocks, dtype=np.int32),
        block_start=(np.arange(case.sequences + 1, dtype=np.int32) * blocks).reshape(1, -1),
        first_block=np.zeros((1, case.sequences), np.int32),
        logit_rows=(ends - 1).astype(np.int32),
        sampling=SamplingArrays(
            floats(0),
            numbers * 0,
            floats(1),
            floats(0),
            numbers.astype(np.uint64),
            numbers * 0,
            numbers * 0,
            np.full(case.sequences, -1, np.int32),
        ),
        encoder=np.empty((0, 3), np.int32),
        copies=np.empty((0, 3), np.int32),
    )


def executor_of(
    case: Case,
    model: tuple[LoadedSpec, CpuWeights],
    threads: int,
    patterns: frozenset[Pattern],
    split: Split,
) -> CpuExecutor:
    """An executor of the case's size."""
    loaded, weights = model
    blocks = case.sequences * -(-(case.context + case.rows) // BLOCK)
    limits = StepLimits(case.rows, case.sequences, case.sequences, 40_000)
    kv = KvConfig(BLOCK, (blocks,), "bfloat16")
    return CpuExecutor(loaded.program, weights, limits, kv, threads, tiling=Tiling(patterns, split))


def barriers(executor: CpuExecutor) -> int:
    """Of one step with many rows; with one row, those before stages of one tile fall away."""
    inside = sum(group.count - 1 for group in executor.fusion.groups)
    return len(executor.program.ops) - inside


def measure(runs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Milliseconds of each, taking turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for which, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            times[which].append((time.perf_counter() - begin) * 1e3)
    return times


def show(case: Case, executors: list[CpuExecutor], repeats: int) -> None:
    """Measures a row of the table and prints it."""
    plan = plan_of(case)
    runs = [partial(executor.execute, plan) for executor in executors]
    for run in runs:
        run()
    times = measure(runs, repeats)
    medians = [statistics.median(t) for t in times]
    tenths = [sorted(t)[len(t) // 10] for t in times]
    print(
        f"{case.name:8} {case.rows:4} rows | {barriers(executors[0]):4} → "
        f"{barriers(executors[1]):4} stages | median {medians[0]:8.3f} → {medians[1]:8.3f} ms"
        f" | p10 {tenths[0]:8.3f} → {tenths[1]:8.3f} ms | {medians[0] / medians[1]:.3f} ×",
        flush=True,
    )


def main() -> None:
    """Measures and prints all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    models: dict[int, tuple[LoadedSpec, CpuWeights]] = {}
    for case in CASES:
        if arguments.only and case.name not in arguments.only:
            continue
        key = case.config["hidden_size"]
        if key not in models:
            models = {key: load(case.config)}
        is_long = case.name == "long"
        plain = ALL_PATTERNS if is_long else frozenset[Pattern]()
        executors = [
            executor_of(case, models[key], arguments.threads, plain, "never"),
            executor_of(case, models[key], arguments.threads, ALL_PATTERNS, "auto"),
        ]
        repeats = max(5, arguments.repeats // 8) if case.rows > 100 else arguments.repeats
        show(case, executors, repeats * (20 if case.name == "tiny" else 1))
        for executor in executors:
            executor.close()


if __name__ == "__main__":
    main()
