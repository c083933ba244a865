"""The models of a comparison, built as `hearth serve` builds them: same files, kernels, settings.

Both are in memory together, each with its weights, scratch and a KV cache of its own for a few
short sequences, where that fits; else one after the other (`one_by_one`). `plan_sides` refuses what
does not fit either way before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hearth.core.config import EngineConfig, SchedulerConfig
from hearth.core.errors import CapacityError, ConfigError
from hearth.core.program import Linear, Norm, StepProgram
from hearth.core.spec import WeightSlot
from hearth.core.step import Executor
from hearth.core.units import MIB, format_bytes, format_count
from hearth.engine.engine import EngineShape
from hearth.engine.executor import (
    BackendChoice,
    LoadedModel,
    choose_backend,
    create_executor,
    load_spec,
)
from hearth.engine.plain_steps import Layout, layout_of
from hearth.engine.planning import fit_request, memory_of, plan_model
from hearth.engine.settings import check_settings
from hearth.engine.text.tokenizer import Tokenizer
from hearth.host.fit import EXTRA_ROWS, RUNTIME_BYTES, Fit, fit, sequence_bytes
from hearth.host.memory import read_memory
from hearth.host.placement import Placement, place_threads
from hearth.kernels.packing import arena_bytes
from hearth.models.config_json import read_config
from hearth.models.loader import LoadedSpec
from hearth.quant.divergence import work_bytes

# Logits of a step, of one model: 110 rows of a vocabulary of 150 thousand.
LOGITS_BYTES = 64 * MIB
MOST_STEP_TOKENS = 128
LEAST_STEP_TOKENS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Lengths:
    """What sequences there will be: of `context` tokens, and answers behind prompts."""

    context: int
    prompt_tokens: int
    answer_tokens: int
    num_answers: int  # side by side

    @property
    def longest(self) -> int:
        """Tokens of a sequence."""
        answer = self.prompt_tokens + self.answer_tokens if self.num_answers else 0
        return max(self.context, answer)


@dataclass(frozen=True, slots=True)
class PlannedSide:
    """A model that is known but for its weights. `label` is how errors call it."""

    label: str
    config: EngineConfig
    backend: BackendChoice
    loaded: LoadedModel
    tokenizer: Tokenizer
    fitted: Fit
    layout: Layout
    num_threads: int

    @property
    def path(self) -> Path:
        """Its directory."""
        return Path(self.config.model.path)

    @property
    def num_bytes(self) -> int:
        """Memory by the plan, the processes aside; scratch twice: layers have another executor."""
        items = self.fitted.plan.items
        scratch = sum(item.num_bytes for item in items if item.name == "scratch")
        return self.fitted.plan.total_bytes + scratch - RUNTIME_BYTES


@dataclass(frozen=True, slots=True)
class Side:
    """A model that runs."""

    plan: PlannedSide
    executor: Executor
    warnings: tuple[str, ...]

    @property
    def shape(self) -> EngineShape:
        """What the executor was built for."""
        fitted = self.plan.fitted
        return EngineShape(fitted.limits, fitted.kv)


@dataclass(frozen=True, slots=True)
class Plans:
    """The models, and how they share the memory.

    `one_by_one`: why they run one after the other; empty: they are in memory together.
    """

    sides: tuple[PlannedSide, ...]
    one_by_one: str = ""


def plan_sides(configs: Iterable[tuple[str, EngineConfig]], lengths: Lengths) -> Plans:
    """Checks settings, models, vocabularies, context and memory, in this order.

    Raises ConfigError, ModelError, TokenizerError, CapacityError.
    """
    sides = tuple(_plan(label, config, lengths) for label, config in configs)
    for other in sides[1:]:
        _check_same_vocabulary(sides[0], other)
    return Plans(sides, _check_memory(sides))


def build_side(plan: PlannedSide, on_progress: Progress) -> Side:
    """Loads the weights. Raises WeightsError, CapacityError, KernelError."""
    shape = EngineShape(plan.fitted.limits, plan.fitted.kv)
    placement = _placement(plan.config)
    loaded = plan.loaded
    if isinstance(loaded, LoadedSpec):
        loaded = replace(loaded, encoder=None)  # text alone
    created = create_executor(plan.backend, loaded, plan.config, shape, placement, on_progress)
    return Side(plan, created.executor, created.warnings)


def without_cache(config: EngineConfig) -> EngineConfig:
    """For a reference: packed to be read once, it is not worth a file."""
    return replace(config, weight_cache=replace(config.weight_cache, max_bytes=0))


def _placement(config: EngineConfig) -> Placement:
    """Threads as a server has them, bound to nothing: two teams take turns."""
    return place_threads("none", config.device.threads, "none")


def _plan(label: str, config: EngineConfig, lengths: Lengths) -> PlannedSide:
    check_settings(config)
    path = Path(config.model.path)
    backend = choose_backend(config.device, path)
    if config.model.quantize not in {"none", "auto"} and backend.name != "cpu":
        raise ConfigError(
            f"{label}: --quantize {config.model.quantize} needs the C++ kernels, and "
            f"{backend.name} runs it ({backend.reason})",
            hint="leave --quantize out",
        )
    threads = _placement(config).num_threads
    if config.model.quantize == "auto":
        chosen = plan_model(backend, config, threads).loaded
        scheme = chosen.quantize if isinstance(chosen, LoadedSpec) else "none"
        config = replace(config, model=replace(config.model, quantize=scheme))
    vocab_size = _vocab_size(path)
    step_tokens = max(LEAST_STEP_TOKENS, min(MOST_STEP_TOKENS, LOGITS_BYTES // (4 * vocab_size)))
    # Every row of a step gives logits: as many sequences as make it so.
    scheduler = SchedulerConfig(max(lengths.num_answers, step_tokens - EXTRA_ROWS, 1), step_tokens)
    config = replace(config, scheduler=scheduler)
    loaded = load_spec(backend, config)
    _check_context(label, loaded, lengths)
    fitted, layout = _fit(backend, config, loaded, lengths)
    tokenizer = Tokenizer.load(path)
    tokenizer.check_vocabulary(loaded.program.vocab_size)
    # As a server has them: the frequencies of some RoPE scalings depend on the longest context.
    longest = config.model.max_model_len or loaded.max_position_embeddings
    loaded = loaded.at_length(longest)
    return PlannedSide(label, config, backend, loaded, tokenizer, fitted, layout, threads)


def _vocab_size(path: Path) -> int:
    """Before anything else of the model is read: it decides how many rows a step has."""
    config = read_config(path)
    values = config.values
    text = values.get("text_config")
    for source in (values, text if isinstance(text, dict) else {}):
        size = source.get("vocab_size")
        if type(size) is int and size > 0:
            return size
    return 1 << 18


def _fit(
    backend: BackendChoice, config: EngineConfig, loaded: LoadedModel, lengths: Lengths
) -> tuple[Fit, Layout]:
    """The memory plan of one model, with whole sequences in windowed layers, too."""
    request = fit_request(backend, config, loaded, _placement(config).num_threads)
    program = request.program
    whole = replace(program, kv_groups=tuple(replace(g, window=0) for g in program.kv_groups))
    places = max(1, lengths.num_answers)
    longest = min(lengths.longest, loaded.max_position_embeddings)
    request = replace(request, program=whole, max_model_len=longest)
    needed = places * sequence_bytes(request, longest)
    fitted = fit(replace(request, kv_memory_bytes=needed), memory_of(loaded))
    tokens = config.scheduler.max_num_batched_tokens
    layout = layout_of(config.cache.block_size, longest, places, tokens)
    kv = replace(fitted.kv, num_blocks=(layout.num_blocks,) * len(program.kv_groups))
    limits = replace(fitted.limits, max_sequences=min(tokens, max(places, 1)))
    return replace(fitted, kv=kv, limits=limits), layout


def _check_context(label: str, loaded: LoadedModel, lengths: Lengths) -> None:
    most = loaded.max_position_embeddings
    if lengths.context > most:
        raise ConfigError(
            f"--context is {format_count(lengths.context)}; {label} supports "
            f"{format_count(most)} tokens",
            hint=f"set --context ≤ {most}",
        )
    if lengths.longest > most:
        raise ConfigError(
            f"{format_count(lengths.longest)} tokens are needed for greedy answers; {label} "
            f"supports {format_count(most)}",
            hint="set --answers 0, which leaves them out",
        )


def _check_same_vocabulary(one: PlannedSide, other: PlannedSide) -> None:
    """Probabilities of other tokens cannot be compared. Raises ConfigError."""
    sizes = [side.loaded.program.vocab_size for side in (one, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{one.label} has a vocabulary of {sizes[0]:,} tokens and {other.label} one of "
            f"{sizes[1]:,}: their probabilities cannot be compared",
            hint="compare a model with the one that it was made from",
        )
    if not one.tokenizer.has_vocabulary_of(other.tokenizer):
        raise ConfigError(
            f"the tokenizers of {one.label} and {other.label} have different tokens: probabilities "
            "cannot be compared",
            hint="compare a model with the one that it was made from",
        )


def head_slots(program: StepProgram) -> tuple[WeightSlot, ...]:
    """What the operations behind the last norm read."""
    last = max(at for at, op in enumerate(program.ops) if isinstance(op, Norm))
    linears = [op for op in program.ops[last + 1 :] if isinstance(op, Linear)]
    names = {name for op in linears for name in (op.weight, op.bias)}
    return tuple(slot for slot in program.slots if slot.name in names)


def _check_memory(sides: tuple[PlannedSide, ...]) -> str:
    """Both models, and the logits of a step: together, or why not. Raises CapacityError."""
    first = sides[0]
    logits = work_bytes(first.layout.step_tokens, first.loaded.program.vocab_size)
    total = sum(side.num_bytes for side in sides) + logits + RUNTIME_BYTES
    memory = read_memory()
    if total <= memory.available_bytes:
        return ""
    parts = ", ".join(
        f"{side.label} {format_bytes(side.num_bytes)} (weights "
        f"{format_bytes(arena_bytes(side.loaded.program.slots))})"
        for side in sides
    )
    if len(sides) > 1 and all(side.backend.name == "cpu" for side in sides):
        head = arena_bytes(head_slots(sides[1].loaded.program))
        second = sides[0].num_bytes + head + logits // 2  # the head's executor has logits, too
        apart = max(sides[1].num_bytes, second) + logits + RUNTIME_BYTES
        if apart <= memory.available_bytes:
            return (
                f"together they need {format_bytes(total)} ({parts}), one at a time "
                f"{format_bytes(apart)}; {memory.describe()}"
            )
        parts += f"; one at a time {format_bytes(apart)}"
    alone = ", or --against none, which measures the perplexity alone" * (len(sides) > 1)
    raise CapacityError(
        f"the models are compared side by side, and need {format_bytes(total)} together: {parts}, "
        f"logits of a step {format_bytes(logits)}; {memory.describe()}",
        hint=f"free memory{alone}",
    )
