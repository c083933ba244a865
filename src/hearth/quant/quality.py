"""Measures what a model's quantization costs: the model as it is served against a reference.

Teacher forcing in steps of up to 128 tokens: both models see a step's tokens, their logits are
compared and dropped, the next step follows. What is kept grows by 40 bytes a token. Then greedy
answers behind the beginnings of the text, until they part, and the error of single layers. Models
that do not fit into memory together run one after the other (`one_by_one`), to the same figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hearth.core.config import EngineConfig
from hearth.core.errors import ConfigError
from hearth.core.units import format_count
from hearth.engine.plain_steps import Greedy, forced_logits
from hearth.quant.divergence import Divergence, DivergenceMeter, Estimate, PerplexityMeter
from hearth.quant.held_out import SeenText
from hearth.quant.layers import LayerReport
from hearth.quant.one_by_one import (
    AnswerRules,
    LiveReference,
    RecordedReference,
    Recording,
    Reference,
    answers_of,
    record,
)
from hearth.quant.sides import (
    Lengths,
    PlannedSide,
    Plans,
    Side,
    build_side,
    plan_sides,
    without_cache,
)
from hearth.quant.text import LEAST_TOKENS, CutText, TextIdentity, TextSource, prefix_of

PROMPT_TOKENS = 32
MODEL, REFERENCE = "MODEL", "the reference"


@dataclass(frozen=True, slots=True)
class QualityRequest:
    """What is measured. `reference` None: the perplexity of the model alone.

    `num_answers` prompts of the text are answered with up to `answer_tokens` tokens by both.
    `seen`: lines of the text that are left out. After `most_seconds` of measuring no other sequence
    is begun.
    """

    model: EngineConfig
    reference: EngineConfig | None
    text: str = "builtin"
    context: int = 512
    num_tokens: int = 20_000
    num_answers: int = 8
    answer_tokens: int = 64
    with_layers: bool = True
    seen: SeenText | None = None
    most_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class GreedyDivergence:
    """Tokens until the greedy answers of both part, of `answer_tokens`; one number an answer."""

    equal_tokens: tuple[int, ...]
    answer_tokens: int
    num_whole: int  # answers that are equal to the end

    @property
    def mean(self) -> float:
        """Over the answers."""
        return float(np.mean(self.equal_tokens))

    @property
    def median(self) -> float:
        """Over the answers."""
        return float(np.median(self.equal_tokens))


@dataclass(frozen=True, slots=True)
class Quality:
    """All that was measured; without a reference the perplexity alone.

    `is_whole`: false where it was interrupted. `curve`: see `DivergenceMeter.curve`. `one_by_one`:
    why the models ran one after the other; empty where they did not.
    """

    model: PlannedSide
    reference: PlannedSide | None
    executor: str
    text: TextIdentity
    context: int
    num_sequences: int
    num_tokens: int
    perplexity: Estimate
    divergence: Divergence | None
    greedy: GreedyDivergence | None
    layers: LayerReport | None
    layers_missing: str
    canary: tuple[int, ...]
    seconds: float
    is_whole: bool = True
    curve: tuple[tuple[float, float], ...] = ()
    warnings: tuple[str, ...] = ()
    one_by_one: str = ""


class Observer(Protocol):
    """Hears how far it is."""

    def note(self, text: str) -> None:
        """What comes next."""
        ...

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total`: bytes of weights, or tokens."""
        ...


@dataclass(slots=True)
class _Run:
    """The measuring as it goes on."""

    request: QualityRequest
    plans: Plans
    source: TextSource
    cut: CutText
    side: Side
    reference: Reference | None
    observer: Observer
    meter: DivergenceMeter | PerplexityMeter
    sequences: list[list[int]] = field(default_factory=list)  # the first ones, for answers, layers
    num_sequences: int = 0
    num_seen: int = 0


def _num_kept(request: QualityRequest) -> int:
    """Sequences that are needed again."""
    return max(request.num_answers, 1)


def measure_quality(request: QualityRequest, observer: Observer) -> Quality:
    """Loads what is needed, measures, and lets go of it again.

    Ctrl-C during the measuring gives what is known up to there (`is_whole` false). Raises
    ConfigError, ModelError, CapacityError, KernelError.
    """
    started = time.monotonic()
    _check(request)
    source = TextSource(request.text, request.seen)
    lengths = Lengths(request.context, PROMPT_TOKENS, request.answer_tokens, _num_answers(request))
    configs = [(MODEL, request.model)]
    if request.reference is not None:
        configs.append((REFERENCE, without_cache(request.reference)))
    plans = plan_sides(configs, lengths)
    cut = _cut_of(request, plans.sides)
    _read_ahead(source, plans.sides, cut)
    with ExitStack() as stack:
        recorded = None
        if plans.one_by_one:
            recorded = _record(request, plans, source, cut, observer)
            stack.callback(recorded.close)
        side = stack.enter_context(_loaded(plans.sides[0], observer))
        reference: Reference | None = recorded
        if len(plans.sides) > 1 and recorded is None:
            other = stack.enter_context(_loaded(plans.sides[1], observer))
            reference = LiveReference(other, _rules(request, plans))
        meter = PerplexityMeter() if reference is None else DivergenceMeter()
        run = _Run(request, plans, source, cut, side, reference, observer, meter)
        return _measured(run, started)


@contextmanager
def _loaded(plan: PlannedSide, observer: Observer) -> Iterator[Side]:
    observer.note(f"loading {plan.label}: {plan.path}")
    side = build_side(plan, lambda done, total: observer.advance("weights", done, total))
    with closing(side.executor):
        yield side


def _rules(request: QualityRequest, plans: Plans) -> AnswerRules:
    ends = tuple(plans.sides[0].loaded.generation.eos_token_ids)
    return AnswerRules(request.answer_tokens, ends)


def _record(
    request: QualityRequest, plans: Plans, source: TextSource, cut: CutText, observer: Observer
) -> RecordedReference:
    """The reference's part of a comparison, before the model is loaded."""
    model, plan = plans.sides
    observer.note(f"one after the other: {plans.one_by_one}")
    observer.note(f"loading {plan.label}, which runs first: {plan.path}")
    end = math.inf

    def sequences() -> Iterator[list[int]]:
        nonlocal end
        end = time.monotonic() + request.most_seconds
        for sequence in source.again().sequences(lambda text: _encode(plans.sides, text), cut):
            yield sequence
            if time.monotonic() > end:
                return

    room = cut.context - len(cut.prefix)
    recording = Recording(
        sequences,
        most_rows=request.num_tokens + len(cut.prefix) * -(-request.num_tokens // room),
        prompts_of=lambda kept: _prompts(request, cut, kept),
        num_kept=_num_kept(request),
        rules=_rules(request, plans),
        with_layers=request.with_layers,
    )
    return record(
        plan,
        model,
        recording,
        lambda done, total: observer.advance("weights", done, total),
        lambda done: observer.advance("tokens", done, request.num_tokens),
    )


def _prompts(
    request: QualityRequest, cut: CutText, sequences: Sequence[list[int]]
) -> list[list[int]]:
    length = max(PROMPT_TOKENS, len(cut.prefix) + 1)  # what the tokenizer puts first is part of it
    return [sequence[:length] for sequence in sequences[: request.num_answers]]


def _num_answers(request: QualityRequest) -> int:
    return request.num_answers if request.reference is not None else 0


def _check(request: QualityRequest) -> None:
    for flag, value, least in (
        ("--context", request.context, 2),
        ("--tokens", request.num_tokens, LEAST_TOKENS),
        ("--answers", request.num_answers, 0),
        ("--answer-tokens", request.answer_tokens, 1),
    ):
        if value < least:
            raise ConfigError(f"{flag} is {value}; permitted: {least} or more")


def _cut_of(request: QualityRequest, plans: Sequence[PlannedSide]) -> CutText:
    prefixes = {prefix_of(plan.tokenizer) for plan in plans}
    if len(prefixes) > 1:
        raise ConfigError(
            "the tokenizers of MODEL and the reference put different tokens before a text",
            hint="compare a model with the one that it was made from",
        )
    prefix = prefixes.pop()
    if request.context < len(prefix) + LEAST_TOKENS:
        raise ConfigError(
            f"--context is {request.context}; permitted: {len(prefix) + LEAST_TOKENS} or more (the "
            f"tokenizer begins a text with {len(prefix)} tokens)"
        )
    return CutText(request.context, request.num_tokens, prefix)


def _encode(plans: Sequence[PlannedSide], text: str) -> list[int]:
    """By the model's tokenizer; that of the reference must agree. Raises ConfigError."""
    ids = plans[0].tokenizer.encode(text)
    for plan in plans[1:]:
        if plan.tokenizer.encode(text) != ids:
            raise ConfigError(
                f"the tokenizers of MODEL and {plan.label} cut this text differently",
                hint="compare a model with the one that it was made from",
            )
    return ids


def _read_ahead(source: TextSource, plans: Sequence[PlannedSide], cut: CutText) -> None:
    """Reads the text's beginning before weights are: what is wrong with it is known at once."""
    other = source.again()
    beginning = CutText(cut.context, min(cut.num_tokens, cut.context), cut.prefix)
    for _ in other.sequences(lambda text: _encode(plans, text), beginning):
        return


def _measured(run: _Run, started: float) -> Quality:
    request, plans = run.request, run.plans.sides
    is_whole = True
    greedy: GreedyDivergence | None = None
    layers: LayerReport | str = "left out"
    try:
        run.observer.note(f"measuring {format_count(request.num_tokens)} tokens of {request.text}")
        _force_all(run)
        if run.reference is not None:
            greedy = _greedy(run, run.reference)
            layers = _layers(run, run.reference)
    except KeyboardInterrupt:
        is_whole = False
        if run.meter.num_tokens == 0:
            raise
    canary = _canary(run.side) if is_whole else ()
    found = run.meter.result()
    others = () if run.reference is None else run.reference.warnings
    return Quality(
        model=plans[0],
        reference=plans[1] if len(plans) > 1 else None,
        executor=run.side.executor.info.detail,
        text=run.source.identity,
        context=request.context,
        num_sequences=run.num_sequences,
        num_tokens=run.meter.num_tokens,
        perplexity=found.perplexity if isinstance(found, Divergence) else found,
        divergence=found if isinstance(found, Divergence) else None,
        greedy=greedy,
        layers=layers if isinstance(layers, LayerReport) else None,
        layers_missing=layers if isinstance(layers, str) else "",
        canary=canary,
        seconds=time.monotonic() - started,
        is_whole=is_whole,
        curve=tuple(run.meter.curve()) if isinstance(run.meter, DivergenceMeter) else (),
        warnings=tuple(dict.fromkeys((*run.side.warnings, *others))),
        one_by_one=run.plans.one_by_one,
    )


def _force_all(run: _Run) -> None:
    """All sequences, as many as there is time for, or as the reference had time for."""
    end = time.monotonic() + run.request.most_seconds
    for sequence in run.source.sequences(lambda text: _encode(run.plans.sides, text), run.cut):
        _force(run, sequence, len(run.cut.prefix))
        is_last = run.reference is not None and run.reference.is_at_end
        if is_last or time.monotonic() > end:
            break


def _force(run: _Run, sequence: list[int], num_prefix: int) -> None:
    """One sequence through both models, a step at a time; every token behind the first counts."""
    if len(run.sequences) < _num_kept(run.request):
        run.sequences.append(sequence)
    run.num_sequences += 1
    first_scored = max(1, num_prefix)  # what comes before is the tokenizer's, not the text's
    steps = [forced_logits(run.side.executor, sequence, run.side.plan.layout)]
    if run.reference is not None:
        steps.append(run.reference.logits(sequence))
    row = 0
    for logits in zip(*steps, strict=True):
        positions = np.arange(row, row + len(logits[0])) + 1  # of the tokens that rows predict
        row += len(logits[0])
        is_scored = (positions >= first_scored) & (positions < len(sequence))
        tokens = np.array(sequence, np.int64)[positions[is_scored]]
        if isinstance(run.meter, DivergenceMeter):
            run.meter.add(logits[1][is_scored], logits[0][is_scored], tokens)
        else:
            run.meter.add(logits[0][is_scored], tokens)
        run.num_seen += len(positions)
        run.observer.advance("tokens", run.num_seen, run.request.num_tokens)


def _greedy(run: _Run, reference: Reference) -> GreedyDivergence | None:
    """Answers of both behind the beginnings of the first sequences."""
    prompts = _prompts(run.request, run.cut, run.sequences)
    if not prompts:
        return None
    run.observer.note(f"{len(prompts)} greedy answers of {run.request.answer_tokens} tokens")
    own = answers_of(run.side, prompts, _rules(run.request, run.plans))
    pairs = list(zip(own, reference.answers(prompts), strict=True))
    lengths = tuple(equal_length(one, other) for one, other in pairs)
    whole = sum(one == other for one, other in pairs)
    return GreedyDivergence(lengths, run.request.answer_tokens, whole)


def equal_length(one: Greedy, other: Greedy) -> int:
    """Tokens until two answers part."""
    both = enumerate(zip(one, other))
    return next((i for i, (a, b) in both if a != b), min(len(one), len(other)))


def _layers(run: _Run, reference: Reference) -> LayerReport | str:
    if not run.request.with_layers:
        return "--no-layers"
    run.observer.note("single layers and matrices")
    return reference.layers(run.side, run.sequences[0])


def _canary(side: Side) -> tuple[int, ...]:
    """The best tokens behind the start-up prompts, which later starts are held to."""
    from hearth.engine.canary import canary_tokens

    return canary_tokens(side.executor, side.shape)
