"""Whole steps of a model through the CPU executor, without scheduler, HTTP or text.

The program is the one that serving runs, with random weights in its packed layout; the floor is
that of `benchmarks.peers.limits`. What a step takes beyond the sum of its operations is barriers
and what the operations leave in each other's caches.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ceilings import Ceiling
from benchmarks.kernel_cases import BLOCK_SIZE
from benchmarks.peers.limits import Scheme, program_scheme, step_floor_s
from benchmarks.peers.models import CONFIG

from hearth.core.spec import DType
from hearth.core.step import KvConfig, StepLimits
from hearth.engine.synthetic import Segment, plan_of
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.loader import LoadedSpec, load_model_spec

WARM_ROWS = 512
# The text model of AutoGLM-Phone-9B, as a model without images.
GLM_9B: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "eos_token_id": 151329,
    "pad_token_id": 151329,
}
CONFIGS = {"1.5b": CONFIG, "9b": GLM_9B}


@dataclass(frozen=True)
class StepPoint:
    """One step: what each sequence brings."""

    label: str
    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        """Tokens of the step."""
        return sum(s.rows for s in self.segments)

    @property
    def kv_tokens(self) -> int:
        """Tokens in the cache behind it."""
        return sum(s.context + s.rows for s in self.segments)

    def floor_s(self, scheme: Scheme, ceiling: Ceiling) -> float:
        """The least time."""
        keys = sum(s.rows * s.context + s.rows * (s.rows + 1) / 2 for s in self.segments)
        return step_floor_s(scheme, ceiling, self.num_rows, len(self.segments), keys)


POINTS = (
    StepPoint("decode", (Segment(127, 1),)),
    *(StepPoint("decode", (Segment(63, 1),) * n) for n in (2, 4, 8, 16, 32, 64)),
    StepPoint("prefill", (Segment(0, 512),)),
    StepPoint("prefill @1536", (Segment(1536, 512),)),
)


def loaded(model: str, quantize: str) -> LoadedSpec:
    """A model by its configuration alone."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(CONFIGS[model]), encoding="utf-8")
        return load_model_spec(name, quantize=quantize)


class StepRig:
    """An executor of a whole model."""

    def __init__(self, spec: LoadedSpec, points: tuple[StepPoint, ...], threads: int, isa: str):
        """Fills weights and the KV that the points read."""
        program = spec.program
        weights = CpuWeights(program)
        for seed, slot in enumerate(program.slots):
            weights.fill_random(slot, seed)
        self.scheme = program_scheme(spec)
        kv_tokens = max(point.kv_tokens for point in points) + BLOCK_SIZE * 64
        most_rows = max(WARM_ROWS, *(point.num_rows for point in points))
        limits = StepLimits(most_rows, 64, 64, 4096)
        kv = KvConfig(BLOCK_SIZE, (kv_tokens // BLOCK_SIZE,), DType.BFLOAT16)
        self.executor = CpuExecutor(program, weights, limits, kv, threads, isa)
        read = max((p.kv_tokens for p in points if p.num_rows < p.kv_tokens), default=0)
        for first in range(0, read, WARM_ROWS):
            parts = [Segment(0, BLOCK_SIZE)] * (WARM_ROWS // BLOCK_SIZE)
            self.executor.execute(plan_of(parts, 1, BLOCK_SIZE, first // BLOCK_SIZE))

    def times(self, point: StepPoint, repeats: int, least_s: float) -> Iterator[float]:
        """Seconds of each step, one token sampled a sequence."""
        plan = plan_of(point.segments, 1, BLOCK_SIZE, with_logits=True)
        self.executor.execute(plan)
        begin, number = time.perf_counter(), 0
        while number < repeats or time.perf_counter() - begin < least_s:
            before = time.perf_counter()
            self.executor.execute(plan)
            yield time.perf_counter() - before
            number += 1
