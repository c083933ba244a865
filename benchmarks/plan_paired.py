"""The plan's tokens a second against a server's, measured in turns: the machine changes meanwhile.

    python -m benchmarks.plan_paired MODEL,SCHEME,SEQUENCES [MODEL,… …] [--windows N]
                                     [-- FLAGS OF hearth serve]

`plan_check` holds a prediction against what happens half a minute later, when memory may have
another rate. Here each window of a server's answers (one stream, then SEQUENCES at a time) stands
between two measurements of the rig that `hearth plan --measure` uses, of half a second each; their
mean predicts the window, by the same arithmetic (`host/speed.decode_s`). The medians of the windows
are reported, and how far single windows are off. Never asserts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plan_check import NEW_TOKENS, Case, Served, Streamed

from hearth.core.spec import KvDType
from hearth.engine.speeds import (
    STEP_S,
    Attention,
    Rig,
    last_cache_bytes,
    measure_layer_s,
    num_layers,
    open_rig,
)
from hearth.host.cost import ProgramCost, program_cost
from hearth.host.placement import place_threads
from hearth.host.speed import PrecisionSpeed, SpeedPoint, Speeds, decode_s
from hearth.models.loader import load_model_spec

CONTEXT = 256
PROMPT = CONTEXT - NEW_TOKENS - 1
PROBE_S = 0.12
KV_BYTES = 256 << 20


@dataclass
class Windows:
    """Predicted over measured, of one row and of all."""

    one: list[float]
    together: list[float]


def probe(rigs: dict[str, Rig], rates: Attention, rows: int, layer_s: float) -> Speeds:
    """What the rig says at this moment."""
    speeds = []
    for name, rig in rigs.items():
        numbers = dict.fromkeys((1, rows))
        points = tuple(SpeedPoint(n, rig.point(n, rates.flops_s, PROBE_S).byte_s) for n in numbers)
        speeds.append(PrecisionSpeed(name, points))
    flops_s, kv_bytes_s = rates.flops_s, rates.kv_bytes_s
    return Speeds(tuple(speeds), flops_s, kv_bytes_s, STEP_S, "now", layer_s=layer_s)


def rate_of(streams: list[Streamed]) -> float:
    """Tokens a second while all take part: between the last first token and the end."""
    last = max(streams, key=lambda stream: stream.first_s)
    return len(streams) / statistics.median(last.gaps_s)


def predicted(cost: ProgramCost, speeds: list[Speeds], streams: int) -> float:
    """Tokens a second, the mean of what both measurements give."""
    seconds = [decode_s(cost, s, streams, PROMPT + NEW_TOKENS // 2).seconds for s in speeds]
    return streams / statistics.fmean(seconds)


def run(case: Case, windows: int, flags: list[str]) -> None:
    """Two lines."""
    loaded = load_model_spec(case.model, quantize=case.scheme)
    cost = program_cost(loaded.program, KvDType(loaded.dtype))
    names = sorted({linear.precision for linear in cost.linears})
    layers = num_layers(last_cache_bytes())
    choose = random.Random(1)
    served = Served(case, KV_BYTES, flags)
    found = Windows([], [])
    rates: dict[str, list[float]] = {"one": [], "all": []}
    try:
        with ExitStack() as stack, ThreadPoolExecutor(case.sequences) as pool:
            placement = place_threads("auto", None)
            layer_s = measure_layer_s(placement, "auto")
            rigs = {
                name: stack.enter_context(
                    open_rig(name, {"num_hidden_layers": layers[name]}, placement, "auto", layer_s)
                )
                for name in names
            }
            attention = next(iter(rigs.values())).attention()
            for _ in range(windows):
                prompts = [
                    [choose.randrange(16, 1000) for _ in range(PROMPT)]
                    for _ in range(case.sequences + 1)
                ]
                before = probe(rigs, attention, case.sequences, layer_s)
                alone = served.stream(prompts[0])
                between = probe(rigs, attention, case.sequences, layer_s)
                together = list(pool.map(served.stream, prompts[1:]))
                after = probe(rigs, attention, case.sequences, layer_s)
                rates["one"].append(rate_of([alone]))
                rates["all"].append(rate_of(together))
                found.one.append(predicted(cost, [before, between], 1) / rates["one"][-1])
                both = [between, after]
                found.together.append(predicted(cost, both, case.sequences) / rates["all"][-1])
    finally:
        served.close()
    name = f"{Path(case.model).name} {case.scheme}"
    for what, ratios, key in (
        ("1", found.one, "one"),
        (str(case.sequences), found.together, "all"),
    ):
        off = statistics.median(ratios) - 1
        least, most = min(ratios) - 1, max(ratios) - 1
        low, high = min(rates[key]), max(rates[key])
        print(
            f"{name:24} {what:>3} streams {off:+7.1%} ({least:+.0%} to {most:+.0%})"
            f"   measured {low:.1f} to {high:.1f} tokens/s",
            flush=True,
        )


def main() -> None:
    """Each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--windows", type=int, default=9)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    for text in options.cases:
        model, scheme, sequences = text.split(",")
        run(Case(model, scheme, CONTEXT, int(sequences)), options.windows, flags.split())


if __name__ == "__main__":
    main()
