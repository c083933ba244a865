"""Measures how fast this machine's kernels run, by steps of a small model with random weights.

The model has the shapes of one of 1.5 billion parameters and a few of its layers, or as many as the
processor's last cache does not hold; seconds in all. What is learned holds for other shapes to some
ten percent (see docs/plan.md); it is what the plan predicts with.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hearth.core.errors import CapacityError
from hearth.core.spec import DType
from hearth.core.step import KvConfig, StepLimits
from hearth.core.units import GIB, MIB, ceil_div, format_bytes
from hearth.engine.synthetic import Segment, plan_of
from hearth.host.cost import ProgramCost, program_cost
from hearth.host.facts.cpu import read_cpu
from hearth.host.memory import read_memory
from hearth.host.placement import Placement
from hearth.host.speed import PrecisionSpeed, SpeedPoint, Speeds, samples_of
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.quantize import SCHEMES

ReportPart: TypeAlias = Callable[[str, int, int], None]

_MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "eos_token_id": 0,
    "bos_token_id": 0,
}
_LAYER_PARAMETERS = 60_800_000
# The same with small layers, and as many of them as make it as large: what differs is what a layer
# takes beside its weights.
_NARROW: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}
_NARROW_PARAMETERS = 2_200_000  # of a layer
_LEAST_NARROW, _MOST_NARROW = 48, 512
# Layers of each precision, at least; more where a cache is large.
_LAYERS = {"int4": 4, "int8": 3, "fp8": 3, "bfloat16": 2, "float32": 2}
_BITS = {"int4": 4, "int8": 8, "fp8": 8, "bfloat16": 16, "float32": 32}
_CACHES = 3  # weights are so many times as large as the last cache
_MOST_LAYERS = 40
_LEAST_FREE_BYTES = GIB
_RIG_BYTES = 192 * MIB  # of buffers, keys and values beside the weights
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
CONTEXT = 1536  # of the step whose attention is told apart
_DECODE_CONTEXT = 4096
_BLOCK_SIZE = 32
LEAST_SHARE = 0.02
_LEAST_S = 0.12  # of measuring one point
_AGAIN_S = 0.06  # of measuring one row once more
_LAYER_PAIRS = 9
_LEAST_STEPS, _MOST_STEPS = 3, 60
# What the front end and the scheduler put between two steps of one stream (docs/performance.md).
STEP_S = 0.15e-3


def measure_speeds(placement: Placement, isa: str, report: ReportPart) -> Speeds:
    """Some seconds of measuring. `report(what, done, total)` is called before each part.

    Raises KernelError, CapacityError, ConfigError (`isa`).
    """
    free = read_memory()
    if free.available_bytes < _LEAST_FREE_BYTES:
        raise CapacityError(
            f"measuring needs {format_bytes(_LEAST_FREE_BYTES)}; {free.describe()}",
            hint="free memory, or leave --measure out",
        )
    layers = num_layers(last_cache_bytes())
    shapes = {precision: {"num_hidden_layers": count} for precision, count in layers.items()}
    speeds: list[PrecisionSpeed] = []
    spread = 0.0
    groups = _groups(layers, free.available_bytes)
    layer_s = measure_layer_s(placement, isa)
    rates: Attention | None = None
    for number, group in enumerate(groups):
        with ExitStack() as stack:
            rigs = [
                stack.enter_context(open_rig(p, shapes[p], placement, isa, layer_s)) for p in group
            ]
            rates = rates or rigs[0].attention()
            for turn, rows in enumerate(ROWS):
                what = f"the kernels, {rows} row{'s' * (rows > 1)} a step"
                report(what, number * len(ROWS) + turn, len(groups) * len(ROWS))
                for rig in rigs:
                    rig.measure(rows, rates.flops_s)
            speeds += (rig.speed() for rig in rigs)
            spread = max(spread, *(rig.spread for rig in rigs))
    assert rates is not None
    source = f"measured with {placement.num_threads} threads"
    return Speeds(
        tuple(speeds),
        rates.flops_s,
        rates.kv_bytes_s,
        STEP_S,
        source,
        round(spread, 3),
        layer_s,
    )


def measure_layer_s(placement: Placement, isa: str) -> float:
    """What a layer takes beside its weights: threads meet, and reading begins anew.

    Of two models with as many weights in few and in many layers; pairs in turns, since memory
    changes its speed. Raises KernelError, CapacityError, ConfigError (`isa`).
    """
    few = num_layers(last_cache_bytes())["int4"]
    many = min(_MOST_NARROW, max(_LEAST_NARROW, few * _LAYER_PARAMETERS // _NARROW_PARAMETERS))
    wide_shape, narrow_shape = {"num_hidden_layers": few}, {**_NARROW, "num_hidden_layers": many}
    with (
        open_rig("int4", wide_shape, placement, isa) as wide,
        open_rig("int4", narrow_shape, placement, isa) as narrow,
    ):
        share = narrow.read_bytes / wide.read_bytes
        one = (Segment(15, 1),)
        found = [
            (narrow.step_s(one, _AGAIN_S) - share * wide.step_s(one, _AGAIN_S))
            / (many - share * few)
            for _ in range(_LAYER_PAIRS)
        ]
    return max(0.0, statistics.median(found))


def num_layers(cache_bytes: int) -> dict[str, int]:
    """Of a rig by precision, beside so large a last cache."""
    return {
        precision: min(
            _MOST_LAYERS, max(least, ceil_div(_CACHES * cache_bytes, _layer_bytes(precision)))
        )
        for precision, least in _LAYERS.items()
    }


def _layer_bytes(precision: str) -> int:
    return _LAYER_PARAMETERS * _BITS[precision] // 8


def _groups(layers: dict[str, int], free_bytes: int) -> list[list[str]]:
    """Precisions that are measured in turns, so that each sees all the time that it takes.

    One after the other where there is too little memory for all of them at once.
    """
    needed = sum(_layer_bytes(precision) * count for precision, count in layers.items())
    needed += len(layers) * _RIG_BYTES
    return [list(layers)] if 2 * needed <= free_bytes else [[precision] for precision in layers]


def last_cache_bytes() -> int:
    """All caches of the last level together; 0: unknown."""
    caches = read_cpu().caches.value or ()
    level = max((cache.level for cache in caches), default=0)
    return sum(cache.size_bytes * cache.count for cache in caches if cache.level == level)


@dataclass(frozen=True, slots=True)
class Attention:
    """Operations a second over many rows, and bytes of KV a second for one row."""

    flops_s: float
    kv_bytes_s: float


class Rig:
    """A small model of one precision, and the times of its steps."""

    def __init__(
        self,
        precision: str,
        executor: CpuExecutor,
        cost: ProgramCost,
        num_blocks: int,
        layer_s: float,
    ) -> None:
        self._precision = precision
        self._executor = executor
        self._cost = cost
        self._layers_s = cost.num_layers * layer_s
        self._points: list[SpeedPoint] = []
        self._first_row_s: list[float] = []
        self.spread = 0.0
        for first in range(0, num_blocks, 8):  # KV that is read has been written
            parts = [Segment(0, _BLOCK_SIZE)] * min(8, num_blocks - first)
            executor.execute(plan_of(parts, 1, _BLOCK_SIZE, first))

    @property
    def read_bytes(self) -> int:
        """Weights that a step of one row reads."""
        return self._cost.read_bytes

    def step_s(self, segments: tuple[Segment, ...], least_s: float | None = None) -> float:
        """The median time of a step, of so many seconds of them."""
        plan = plan_of(segments, 1, _BLOCK_SIZE, with_logits=True)
        self._executor.execute(plan)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < _MOST_STEPS and (
            len(times) < _LEAST_STEPS
            or time.perf_counter() - begin < (_LEAST_S if least_s is None else least_s)
        ):
            before = time.perf_counter()
            self._executor.execute(plan)
            times.append(time.perf_counter() - before)
        middle = statistics.median(times)
        quartiles = statistics.quantiles(times, n=4)
        self.spread = max(self.spread, (quartiles[2] - quartiles[0]) / middle)
        return middle

    def attention(self) -> Attention:
        """Told apart from the rest of a step by what a context adds."""
        rows = ROWS[-1]
        behind = self._difference((Segment(CONTEXT, rows),), (Segment(0, rows),))
        flops = self._cost.attend_flops * rows * CONTEXT + self._cost.wanted_attend_flops * CONTEXT
        far = self._difference((Segment(_DECODE_CONTEXT, 1),), (Segment(0, 1),))
        read = self._cost.kv_bytes * _DECODE_CONTEXT
        return Attention(flops / behind, read / far)

    def _difference(self, more: tuple[Segment, ...], less: tuple[Segment, ...]) -> float:
        """What a context costs: medians of pairs in turns. At least a part of the step.

        A machine that changes its speed between the two would make it nothing, or less.
        """
        pairs = [(self.step_s(more), self.step_s(less)) for _ in range(3)]
        found = statistics.median(a - b for a, b in pairs)
        return max(found, LEAST_SHARE * min(a for a, _ in pairs))

    def measure(self, rows: int, attend_flops_s: float) -> None:
        """So many rows a step, and one row again: memory is not as fast all the time."""
        if rows > 1:
            self._points.append(self.point(rows, attend_flops_s))
        least_s = min(_LEAST_S, _AGAIN_S) if rows > 1 else _LEAST_S
        self._first_row_s.append(self.point(1, attend_flops_s, least_s).byte_s)

    def speed(self) -> PrecisionSpeed:
        """Seconds a byte of weights at each number of rows that was measured."""
        samples = samples_of(self._first_row_s)
        points = (SpeedPoint(1, samples.median), *self._points)
        return PrecisionSpeed(self._precision, points, samples)

    def point(self, rows: int, attend_flops_s: float, least_s: float | None = None) -> SpeedPoint:
        """What a byte of weights takes in steps of so many rows, of `least_s` seconds of them."""
        is_prompt = rows == ROWS[-1]
        segments = (Segment(0, rows),) if is_prompt else (Segment(15, 1),) * rows
        whole = self.step_s(segments, least_s)
        seconds = whole - self._layers_s
        if is_prompt:
            seconds -= self._cost.attend_flops * rows * (rows + 1) / 2 / attend_flops_s
        seconds = max(seconds, whole / 2)
        # Of a prompt what follows the last keys and values is computed for one row.
        token_bytes = sum(c.token_bytes for c in self._cost.linears)
        wanted_bytes = sum(c.wanted_bytes for c in self._cost.linears)
        shared = token_bytes if is_prompt else token_bytes + wanted_bytes
        return SpeedPoint(rows, seconds / shared)


@contextmanager
def open_rig(
    precision: str, shape: dict[str, Any], placement: Placement, isa: str, layer_s: float = 0.0
) -> Iterator[Rig]:
    """A rig with random weights; `shape` changes the model's, `layer_s` as of `Speeds`.

    Raises KernelError, CapacityError, ConfigError (`isa`).
    """
    loaded = _small_model(precision, shape)
    weights = CpuWeights(loaded.program)
    for seed, slot in enumerate(loaded.program.slots):
        weights.fill_random(slot, seed)
    longest = max(_DECODE_CONTEXT + 1, CONTEXT + ROWS[-1], _BLOCK_SIZE * max(ROWS[:-1]))
    num_blocks = ceil_div(longest, _BLOCK_SIZE)
    limits = StepLimits(ROWS[-1], 64, 64, _MODEL["max_position_embeddings"])
    kv = KvConfig(_BLOCK_SIZE, (num_blocks,), DType.BFLOAT16)
    executor = CpuExecutor(loaded.program, weights, limits, kv, placement.num_threads, isa)
    with closing(executor):
        if placement.cpus:
            executor.bind(placement.cpus)
        yield Rig(precision, executor, program_cost(loaded.program), num_blocks, layer_s)


def _small_model(precision: str, shape: dict[str, Any]) -> LoadedSpec:
    is_codes = precision in SCHEMES
    config = {**_MODEL, **shape}
    with tempfile.TemporaryDirectory(prefix="hearth-measure-") as name:
        (Path(name) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_model_spec(
            name,
            dtype="auto" if is_codes else precision,
            quantize=precision if is_codes else "none",
        )
