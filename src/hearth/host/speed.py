"""How long steps take on a machine: measured speeds of its kernels, applied to what steps cost.

A linear layer's time is proportional to its weights, by a factor that depends on the number of
rows: by reading for few, by multiplying for many. The factor is measured at some numbers of rows
and taken on a straight line between them. Attention costs operations where many rows are read, and
the reading of keys and values where one is generated.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hearth.core.units import ceil_div
from hearth.host.cost import ProgramCost

# Where the most differs from the least by more than this, the difference is worth saying.
WORTH_SAYING = 1.10


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured `count` times."""

    least: float
    median: float
    most: float
    count: int

    @property
    def is_wide(self) -> bool:
        """Whether they differ by so much that it should be said."""
        return self.most > self.least * WORTH_SAYING


def samples_of(values: Sequence[float]) -> Samples:
    """Of one value or more."""
    return Samples(min(values), statistics.median(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class SpeedPoint:
    """Seconds that a byte of weights takes in a step of so many rows."""

    num_rows: int
    byte_s: float


@dataclass(frozen=True, slots=True)
class PrecisionSpeed:
    """Of weights of one precision; `points` by ascending number of rows, at least one.

    `first_row_s`: samples of the seconds a byte takes with one row, spread over the measurement;
    None: there is but one.
    """

    precision: str
    points: tuple[SpeedPoint, ...]
    first_row_s: Samples | None = None

    def describe(self) -> str:
        """`int4 42.9 GB/s (38.1-52.7)`: how fast one row reads, and its range where it is wide."""
        shown = f"{self.precision} {1e-9 / self.byte_s(1):.1f} GB/s"
        samples = self.first_row_s
        if samples is None or not samples.is_wide:
            return shown
        return f"{shown} ({1e-9 / samples.most:.1f}-{1e-9 / samples.least:.1f})"

    def byte_s(self, num_rows: float) -> float:
        """Seconds a byte of weights, on a line between the points and through the last two."""
        first = self.points[0]
        if num_rows <= first.num_rows or len(self.points) == 1:
            return first.byte_s
        right = next((i for i, p in enumerate(self.points) if p.num_rows >= num_rows), -1)
        low, high = self.points[right - 1], self.points[right]
        slope = (high.byte_s - low.byte_s) / (high.num_rows - low.num_rows)
        if num_rows > high.num_rows:  # noise must not make many rows cheaper than none
            return high.byte_s + max(0.0, slope) * (num_rows - high.num_rows)
        return low.byte_s + slope * (num_rows - low.num_rows)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a machine's kernels do; `source` says how they are known, `spread` how far they vary.

    `attend_flops_s`: operations a second of attention over many rows; `kv_bytes_s`: how fast keys
    and values are read for one row; `layer_s`: what a layer takes beside its weights and keys, as
    threads meet after each of its parts; `step_s`: what a step takes beside its kernels when it is
    served.
    """

    precisions: tuple[PrecisionSpeed, ...]
    attend_flops_s: float
    kv_bytes_s: float
    step_s: float
    source: str
    spread: float = 0.0
    layer_s: float = 0.0

    def of(self, precision: str) -> PrecisionSpeed | None:
        """None: this precision has not been measured."""
        return next((p for p in self.precisions if p.precision == precision), None)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds, of what is `missing` nothing is known.

    `least_part`, `most_part`: what it may become, in parts of it, as the speed of memory varied
    while it was measured; 1 where nothing is known of that.
    """

    seconds: float
    missing: tuple[str, ...] = ()
    least_part: float = 1.0
    most_part: float = 1.0


def linear_s(cost: ProgramCost, speeds: Speeds, num_rows: int, num_wanted: int) -> Prediction:
    """The linear layers and experts of one step."""
    seconds, missing = 0.0, set[str]()
    for linear in cost.linears:
        speed = speeds.of(linear.precision)
        if speed is None:
            missing.add(linear.precision)
            continue
        seconds += linear.token_bytes * speed.byte_s(num_rows)
        seconds += linear.wanted_bytes * speed.byte_s(num_wanted) if num_wanted else 0.0
    for expert in cost.experts:
        speed = speeds.of(expert.precision)
        if speed is None:
            missing.add(expert.precision)
            continue
        touched = expert.touched(num_rows)
        rows = num_rows * expert.top_k / touched
        seconds += expert.num_layers * touched * expert.expert_bytes * speed.byte_s(rows)
    return Prediction(seconds, tuple(sorted(missing)))


def decode_s(cost: ProgramCost, speeds: Speeds, num_streams: int, context: int) -> Prediction:
    """One token for each of the streams, with so many tokens behind each."""
    linear = linear_s(cost, speeds, num_streams, num_streams)
    read_s = cost.kv_bytes * context * num_streams / speeds.kv_bytes_s
    fixed_s = cost.num_layers * speeds.layer_s + speeds.step_s
    seconds = linear.seconds + read_s + fixed_s
    least, most = _variation(cost, speeds)
    fixed = fixed_s / seconds if seconds else 1.0  # the part that no memory is read in
    return Prediction(
        seconds,
        linear.missing,
        fixed + (1 - fixed) * least,
        fixed + (1 - fixed) * most,
    )


def _variation(cost: ProgramCost, speeds: Speeds) -> tuple[float, float]:
    """The least and the most of a step of one row, in parts of its median.

    Of the precision whose speed varied most: steps of all of them read the same memory.
    """
    names = {c.precision for c in cost.linears} | {c.precision for c in cost.experts}
    known = [p.first_row_s for name in names if (p := speeds.of(name)) is not None]
    samples = [s for s in known if s is not None and s.median > 0]
    least = min((s.least / s.median for s in samples), default=1.0)
    return least, max((s.most / s.median for s in samples), default=1.0)


def prefill_s(
    cost: ProgramCost, speeds: Speeds, num_tokens: int, cached: int, step_tokens: int
) -> Prediction:
    """To the first token of a prompt of `num_tokens`, `cached` of which are in the cache."""
    todo = max(1, num_tokens - cached)
    num_steps = ceil_div(todo, step_tokens)
    seconds, missing = 0.0, set[str]()
    for number in range(num_steps):
        rows = min(step_tokens, todo - number * step_tokens)
        context = cached + number * step_tokens
        is_last = number == num_steps - 1
        linear = linear_s(cost, speeds, rows, 1 if is_last else 0)
        missing.update(linear.missing)
        pairs = rows * context + rows * (rows + 1) / 2
        flops = cost.attend_flops * pairs
        if is_last:
            flops += cost.wanted_attend_flops * (context + rows)
        seconds += linear.seconds + flops / speeds.attend_flops_s
        seconds += cost.num_layers * speeds.layer_s + speeds.step_s
    return Prediction(seconds, tuple(sorted(missing)))


def encode_s(cost: ProgramCost, speeds: Speeds, num_patches: int, window: int = 0) -> Prediction:
    """An encoder's image: every patch sees all of them, or `window` where that is less."""
    linear = linear_s(cost, speeds, num_patches, 1)
    seen = min(num_patches, window) if window else num_patches
    flops = (cost.attend_flops + cost.wanted_attend_flops) * num_patches * seen
    seconds = linear.seconds + flops / speeds.attend_flops_s + cost.num_layers * speeds.layer_s
    return Prediction(seconds, linear.missing)
