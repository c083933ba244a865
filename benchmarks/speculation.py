"""Speculation against none: tokens a second of transcripts over the real kernels, interleaved.

    python -m benchmarks.speculation MODEL [--quantize int4] [--streams 1,8,32] [--repeats 5]

The engine and its kernels run as they do in a server; only the tokens that come out are replaced by
those of a transcript (a small model would not write them). So the time of every step is the real
one, rejected rows included, and the answer is an agent's. Without a drafter and with one in turn
(A B A B), each over all transcripts of a kind; the median of the ratios, and their extremes. The
drafter starts anew for each kind and keeps what it learns, as a server does. Never asserts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.transcripts import ADVERSARIES, AGENTS, Transcript
from tokenizers import Tokenizer
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import EngineConfig, ModelConfig, SchedulerConfig, SpeculationConfig
from hearth.core.request import Request, SamplingParams
from hearth.core.step import Executor, StepPlan, StepResult
from hearth.engine.engine import Engine
from hearth.engine.speculation.drafter import NgramDrafter
from hearth.engine.startup import start

TOKENIZER = TEXT_MODEL_DIR / "tokenizer.json"


class Reciting:
    """Executes every step, and answers what the transcript has at the row's position.

    A request's seed is the index of its transcript.
    """

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.texts: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def execute(self, plan: StepPlan) -> StepResult:
        """See core.step.Executor."""
        result = self._inner.execute(plan)
        seeds, positions = plan.sampling.seed.tolist(), plan.sampling.position.tolist()
        for row, (seed, position) in enumerate(zip(seeds, positions)):
            text = self.texts[seed]
            result.tokens[row] = text[min(position, len(text) - 1)]
        return result


@dataclass(frozen=True)
class Ran:
    """All transcripts of a kind, once: from the first token of all to the last of all."""

    seconds: float
    processor_s: float  # of all threads; the one to compare where others use the machine too
    num_tokens: int
    num_drafted: int
    num_accepted: int

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True)
class Figures:
    """Of one kind at one number of streams."""

    kind: str
    streams: int
    tokens: int
    plain_tokens_per_s: float
    drafted_tokens_per_s: float
    clock_ratio: float
    ratio: float  # of processor time, which depends less on what else runs on the machine
    least_ratio: float
    largest_ratio: float
    drafted: int
    accepted: int


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default=str(TEXT_MODEL_DIR))
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3, help="transcripts of a kind and stream")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    engine, reciting = build_engine(options.model, options.quantize, max(counts))
    kinds = {**AGENTS, **ADVERSARIES}
    wanted = [kind.strip() for kind in options.kinds.split(",") if kind.strip()] or list(kinds)
    found: list[Figures] = []
    print("kind          streams   tokens/s off → on     ratio, processor time (least to largest)")
    for count in counts:
        for kind in wanted:
            rounds = transcripts(kinds[kind], count, options.rounds)
            figures = compare(engine, reciting, kind, rounds, options.repeats)
            found.append(figures)
            print(
                f"{kind:13} {count:7d}   {figures.plain_tokens_per_s:7.1f} → "
                f"{figures.drafted_tokens_per_s:7.1f}   {figures.clock_ratio:6.3f}   "
                f"{figures.ratio:6.3f} ({figures.least_ratio:.3f} to {figures.largest_ratio:.3f}) "
                f"{figures.accepted}/{figures.drafted} accepted, {figures.tokens} tokens",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))


def build_engine(model: str, quantize: str, num_streams: int) -> tuple[Engine, Reciting]:
    """As a server starts it, with room for these streams."""
    config = EngineConfig(
        ModelConfig(model, quantize=quantize, max_model_len=2048),
        scheduler=SchedulerConfig(max_num_seqs=num_streams),
        speculation=SpeculationConfig("off"),
    )
    engine = start(config, lambda *_: None).engine
    reciting = Reciting(engine._executor)
    engine._executor = reciting  # type: ignore[assignment]
    return engine, reciting


def transcripts(
    make: Callable[..., Transcript], num_streams: int, num_rounds: int
) -> list[list[Transcript]]:
    """For each round one a stream."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    chance = random.Random(1)
    return [[make(tokenizer, chance) for _ in range(num_streams)] for _ in range(num_rounds)]


def compare(
    engine: Engine,
    reciting: Reciting,
    kind: str,
    rounds: list[list[Transcript]],
    repeats: int,
) -> Figures:
    """A B A B; before it once without counting, which also fills the prefix cache."""
    drafter = NgramDrafter()
    plain: list[Ran] = []
    drafted: list[Ran] = []
    run(engine, reciting, rounds)
    for _ in range(repeats):
        engine.scheduler.drafter = None
        plain.append(run(engine, reciting, rounds))
        engine.scheduler.drafter = drafter
        drafted.append(run(engine, reciting, rounds))
    engine.scheduler.drafter = None
    pairs = list(zip(plain, drafted, strict=True))
    ratios = [one.processor_s / other.processor_s for one, other in pairs]
    return Figures(
        kind,
        len(rounds[0]),
        plain[0].num_tokens,
        statistics.median(one.tokens_per_s for one in plain),
        statistics.median(one.tokens_per_s for one in drafted),
        statistics.median(one.seconds / other.seconds for one, other in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        drafted[-1].num_drafted,
        drafted[-1].num_accepted,
    )


def run(engine: Engine, reciting: Reciting, rounds: list[list[Transcript]]) -> Ran:
    """Round after round; in a round the streams decode side by side."""
    seconds, processor_s, num_tokens = 0.0, 0.0, 0
    before = engine.stats()
    for streams in rounds:
        reciting.texts = [one.prompt + one.answer for one in streams]
        waiting = set()
        for number, one in enumerate(streams):
            name = f"{time.monotonic_ns()}-{number}"
            waiting.add(name)
            sampling = SamplingParams(temperature=0, seed=number)
            engine.submit(Request(name, one.prompt, len(one.answer), sampling))
        while waiting:  # for their first tokens; what others decode meanwhile does not count
            for event in engine.step():
                if event.error_code:
                    raise SystemExit(f"{event.error_code}: {event.message}")
                if event.tokens:
                    waiting.discard(event.request_id)
        left = engine.stats().num_generated_tokens
        started, used = time.perf_counter(), time.process_time()
        while engine.has_work:
            engine.step()
        seconds += time.perf_counter() - started
        processor_s += time.process_time() - used
        num_tokens += engine.stats().num_generated_tokens - left
    after = engine.stats()
    return Ran(
        seconds,
        processor_s,
        num_tokens,
        after.num_draft_tokens - before.num_draft_tokens,
        after.num_accepted_tokens - before.num_accepted_tokens,
    )


if __name__ == "__main__":
    main()
