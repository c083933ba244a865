"""What quantization loses, against the same model in float32 arithmetic on its own weights.

    python -m benchmarks.quantization_loss [MODEL --text FILE] [--only SCHEME …] [--outliers]
                                           [--kv-only] [--kv-dtype NAME,…]

Perplexity, KL divergence, the share of positions whose best token stays, and how far greedy
answers stay equal. Of the small text model: conversations of a seed that its training never saw,
once over the tokens of the answers, which is what it was trained on, and once over all tokens,
where it is unsure and small changes show more. Of another model: the text, in pieces.

`--kv-dtype`: how keys and values are stored meanwhile; several, a row for each. "int4-plain" is
int4 whose keys are not rotated. `--kv-only`: of the unquantized model.
`--parts`: one part of the model at a time, weights or activations alone, to see what costs.
`--outliers`: some channels of each norm's gain are multiplied by s and the columns that read them
divided by s. The function stays the same; activations get outliers, as large models have them.
Compared with it: one scale for a whole row (a token) instead of one for each group, in torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tools.demo_model import TEXT_MODEL_DIR

from hearth.core.config import DEFAULT_CODES, CodesConfig
from hearth.core.program import Linear, Norm, StepProgram
from hearth.core.spec import DType, KvDType, QuantSpec, WeightSlot
from hearth.core.step import Executor, KvConfig, StepLimits
from hearth.engine.plain_steps import Greedy, forced_logits, greedy_answers, layout_of
from hearth.kernels.cpu.executor import CpuExecutor
from hearth.kernels.cpu.weights import CpuWeights
from hearth.kernels.packing import HostTensor, WeightSink
from hearth.models.loader import LoadedSpec, load_model_spec
from hearth.models.lower import lower
from hearth.models.quantize import RESIDUAL
from hearth.models.weights import elements, load_weights
from hearth.quant.divergence import Divergence, DivergenceMeter
from hearth.quant.quality import equal_length

LIMITS = StepLimits(512, 16, 512, 4096)
LAYOUT = layout_of(32, 1024, LIMITS.max_sequences, LIMITS.max_tokens)
KV_NAMES = ("float32", "bfloat16", "int8", "fp8", "int4", "int4-plain")
SEED = 20_261  # of the conversations; training took 1 and 2
NUM_NEW_TOKENS = 64
PIECE_TOKENS = 256
OUTLIER_SHARE = 0.005  # of the channels, at least one
OUTLIER_SCALES = (30, 100, 300, 1000)
LAYER_COLS, LAYER_OUTLIERS = 4096, 6

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Scheme:
    """A way to store the model. `part` is coded only, or all; `per_token`: see the module."""

    name: str
    quantize: str = "none"
    codes: CodesConfig = DEFAULT_CODES
    part: str = ""
    per_token: bool = False
    float_weights: bool = False  # only what is multiplied with them is rounded


@dataclass(frozen=True)
class Sample:
    """A text; `scored` are the positions whose tokens are predicted, `prompt` comes before all."""

    ids: list[int]
    scored: list[int]
    num_prompt: int


@dataclass(frozen=True)
class Base:
    """What the model itself says: logits at all positions, and its greedy answers."""

    logits: list[Logits]
    answers: list[Greedy]


def scheme(bits: int, group: int = 128, rows: str = "int8", *, zeros: bool = False) -> Scheme:
    """One of the schemes that can be served, or could be."""
    zero = ", zero points" if zeros else ""
    name = f"int{bits}, groups of {group}{zero}, {rows} activations"
    return Scheme(name, f"int{bits}", CodesConfig(rows, group, zeros))


SCHEMES = [
    scheme(8),
    scheme(8, rows="float32"),
    *(Scheme(f"fp8, groups of {g}", "fp8", CodesConfig("float32", g)) for g in (128, 32)),
    *(
        scheme(4, group, rows, zeros=zeros)
        for group in (128, 64, 32)
        for zeros in (False, True)
        for rows in ("int8", "float32")
    ),
]
PARTS = [
    *(
        replace(scheme(4, rows=rows), name=f"int4 {part} only, {rows} activations", part=part)
        for part in ("qkv", "attention_out", "gate_up", "down")
        for rows in ("float32", "int8")
    ),
    replace(scheme(8), name="int8 embedding and head only", part="embedding"),
    replace(scheme(8), name="int8 activations only", float_weights=True),
    replace(scheme(8, 32), name="int8 activations only, groups of 32", float_weights=True),
]
OF_OUTLIERS = [
    Scheme("unquantized"),
    *(scheme(bits, 128, rows) for bits in (8, 4) for rows in ("float32", RESIDUAL, "int8")),
    *(
        Scheme(
            f"{rows} activations, groups of {g}", "int8", CodesConfig(rows, g), float_weights=True
        )
        for rows in (RESIDUAL, "int8")
        for g in (128, 64, 32)
    ),
    replace(
        scheme(8), name="int8 activations, one scale a token", float_weights=True, per_token=True
    ),
]


class Outliers:
    """A sink that gives activations outliers and takes them back in the columns that read them."""

    def __init__(self, inner: WeightSink, program: StepProgram, scale: float) -> None:
        self._inner, self._scale = inner, scale
        reads = dict(norms_and_readers(program))
        self._gains = {norm: self._channels(norm, slots[0].cols) for norm, slots in reads.items()}
        self._columns = {
            slot.name: self._gains[norm] for norm, slots in reads.items() for slot in slots
        }

    def _channels(self, norm: str, width: int) -> NDArray[np.intp]:
        random = np.random.default_rng(abs(hash_of(norm)))
        return random.choice(width, max(1, round(OUTLIER_SHARE * width)), replace=False)

    def put(self, slot: WeightSlot, first_row: int, tensor: HostTensor) -> None:
        """See WeightSink."""
        values = elements(tensor.data, tensor.dtype).reshape(tensor.shape).copy()
        if slot.name in self._gains:
            values[self._gains[slot.name]] *= self._scale
        if slot.name in self._columns:
            values[:, self._columns[slot.name]] /= self._scale
        raw = values.reshape(-1).view(np.uint8)
        self._inner.put(slot, first_row, HostTensor(raw, DType.FLOAT32, values.shape))

    def fill_random(self, slot: WeightSlot, seed: int) -> None:
        """See WeightSink."""
        self._inner.fill_random(slot, seed)


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(text.encode()[-7:], "little")


def norms_and_readers(program: StepProgram) -> Iterator[tuple[str, list[WeightSlot]]]:
    """Norm weights, and the matrices that read what each gives; an embedding is left alone."""
    slots = {slot.name: slot for slot in program.slots}
    embeddings = {op.table for op in program.ops if hasattr(op, "table")}
    for index, op in enumerate(program.ops):
        following = program.ops[index + 1 : index + 3]
        readers = [slots[o.weight] for o in following if isinstance(o, Linear)]
        if isinstance(op, Norm) and readers and readers[0].name not in embeddings:
            yield op.weight, readers


def loaded_as(path: Path, how: Scheme) -> LoadedSpec:
    """The model, with the slots coded that the scheme says."""
    loaded = load_model_spec(path, "float32", quantize=how.quantize, codes=how.codes)

    def keep(slot: WeightSlot) -> WeightSlot:
        is_other = how.part and not slot.name.endswith(how.part)
        return replace(slot, quant=QuantSpec(DType.FLOAT32)) if is_other else slot

    spec = replace(loaded.spec, slots=tuple(keep(slot) for slot in loaded.spec.slots))
    return replace(loaded, spec=spec, program=lower(spec))


def build(
    path: Path, how: Scheme, outlier_scale: float, kv_name: str = KvDType.FLOAT32
) -> Executor:
    """An executor of the model; the kernels where they can do it, else torch."""
    loaded = loaded_as(path, how)
    program = loaded.program
    kv_dtype, _, plain = kv_name.partition("-")
    num_blocks = (LAYOUT.num_blocks,) * len(program.kv_groups)
    kv = KvConfig(LAYOUT.block_size, num_blocks, KvDType(kv_dtype), not plain)

    def fill(sink: WeightSink) -> None:
        wrapped = Outliers(sink, program, outlier_scale) if outlier_scale != 1 else sink
        load_weights(loaded, wrapped)

    if not (how.per_token or how.float_weights):
        weights = CpuWeights(program)
        fill(weights)
        return CpuExecutor(program, weights, LIMITS, kv, 2)
    import torch

    from hearth.kernels.reference.executor import ReferenceExecutor
    from hearth.kernels.reference.weights import ReferenceWeights

    torch.set_num_threads(1)  # the model is small: a second thread is waited for
    if how.per_token:
        buffers = [replace(b, group_size=b.group_size and b.width) for b in program.buffers]
        program = replace(program, buffers=tuple(buffers))
    plain = [replace(s, quant=QuantSpec(DType.FLOAT32)) for s in program.slots]
    program = replace(program, slots=tuple(plain)) if how.float_weights else program
    loaded = replace(loaded, program=program, spec=replace(loaded.spec, slots=program.slots))
    reference = ReferenceWeights(program)
    fill(reference)
    return ReferenceExecutor(program, reference, LIMITS, kv)


def conversations(path: Path, count: int) -> list[Sample]:
    """Of the small text model's kind, with a seed that training never saw."""
    from tools.demo_model.corpus import draw_conversations
    from tools.demo_model.tokenizer import IGNORED_LABEL, Encoder

    encoder = Encoder(Tokenizer.from_file(str(path / "tokenizer.json")))
    samples = []
    for conversation in draw_conversations(SEED, count):
        encoded = encoder.encode(conversation)
        scored = [i for i, label in enumerate(encoded.labels) if label != IGNORED_LABEL]
        samples.append(Sample(encoded.ids, scored, scored[0]))
    return samples


def pieces(path: Path, text: Path, count: int) -> list[Sample]:
    """Of any text, PIECE_TOKENS long each."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8")).ids
    cut = [ids[i : i + PIECE_TOKENS] for i in range(0, len(ids) - PIECE_TOKENS + 1, PIECE_TOKENS)]
    return [Sample(one, list(range(1, len(one))), PIECE_TOKENS // 4) for one in cut[:count]]


def logits_of(executor: Executor, samples: list[Sample]) -> list[Logits]:
    """Raw logits at every position of each sample, [length, vocabulary]."""
    return [np.concatenate(list(forced_logits(executor, s.ids, LAYOUT))) for s in samples]


def answers_of(executor: Executor, samples: list[Sample], ends: tuple[int, ...]) -> list[Greedy]:
    """Greedy answers behind the prompts."""
    prompts = [s.ids[: s.num_prompt] for s in samples]
    return greedy_answers(executor, prompts, NUM_NEW_TOKENS, LAYOUT, ends)


def base_of(executor: Executor, samples: list[Sample], ends: tuple[int, ...]) -> Base:
    """What everything is compared with."""
    return Base(logits_of(executor, samples), answers_of(executor, samples, ends))


def loss_over(
    base: list[Logits],
    other: list[Logits],
    samples: list[Sample],
    scored: Callable[[Sample], list[int]],
) -> Divergence:
    """Over the scored positions of all samples."""
    meter = DivergenceMeter()
    for ours, theirs, sample in zip(base, other, samples, strict=True):
        at = np.array(scored(sample), np.intp)
        meter.add(ours[at - 1], theirs[at - 1], np.array(sample.ids, np.int64)[at])
    return meter.result()


def report(
    name: str, base: Base, executor: Executor, samples: list[Sample], ends: tuple[int, ...]
) -> None:
    """One line: answers, all tokens, greedy answers."""
    logits = logits_of(executor, samples)
    answers = loss_over(base.logits, logits, samples, lambda s: s.scored)
    tokens = loss_over(base.logits, logits, samples, lambda s: list(range(1, len(s.ids))))
    greedy = answers_of(executor, samples, ends)
    same = [equal_length(a, b) for a, b in zip(base.answers, greedy, strict=True)]
    whole = np.mean([a == b for a, b in zip(base.answers, greedy, strict=True)])
    parts = [
        f"{100 * one.perplexity_change.mean:+.3f} % | {one.kl.mean:.2e} | "
        f"{100 * one.top1.mean:.2f} %"
        for one in (answers, tokens)
    ]
    print(
        f"| {name} | {' | '.join(parts)} | {100 * whole:.1f} %, {np.mean(same):.1f} |", flush=True
    )


def layer_errors() -> None:
    """Error of one wide layer's outputs, where only its rows are rounded, of their own size."""
    import torch

    from hearth.kernels.reference.quantize import rounded_rows

    random = np.random.default_rng(1)
    x = random.normal(0, 1, (64, LAYER_COLS)).astype(np.float32)
    weight = random.normal(0, LAYER_COLS**-0.5, (256, LAYER_COLS)).astype(np.float32)
    channels = random.choice(LAYER_COLS, LAYER_OUTLIERS, replace=False)
    print("\n| one layer | residuals | groups of 128 | of 64 | of 32 | one scale a token |")
    print("|---|---|---|---|---|---|")
    for scale in (1, *OUTLIER_SCALES):
        factors = np.ones(LAYER_COLS, np.float32)
        factors[channels] = scale
        rows, reader = torch.from_numpy(x * factors), torch.from_numpy(weight / factors)
        exact = rows @ reader.T
        errors = [
            float((rounded @ reader.T - exact).norm() / exact.norm())
            for rounded in (
                rounded_rows(rows, 128, residual=True),
                *(rounded_rows(rows, group) for group in (128, 64, 32, LAYER_COLS)),
            )
        ]
        print(f"| s = {scale} | {' | '.join(f'{100 * error:.2f} %' for error in errors)} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=TEXT_MODEL_DIR)
    parser.add_argument("--text", type=Path, help="what another model is measured on")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--only", default="", help="schemes whose name holds this")
    parser.add_argument(
        "--kv-dtype",
        type=lambda text: text.split(","),
        default=["float32"],
        help=f"of {', '.join(KV_NAMES)}; bfloat16: as served",
    )
    parser.add_argument("--kv-only", action="store_true")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--outliers", action="store_true")
    given = parser.parse_args()
    for wrong in {*given.kv_dtype} - {*KV_NAMES}:
        parser.error(f"{wrong!r} is none of {', '.join(KV_NAMES)}")
    if given.text is None:
        samples = conversations(given.model, given.samples)
    else:
        samples = pieces(given.model, given.text, given.samples)
    executor = build(given.model, Scheme("none"), 1)
    ends = load_model_spec(given.model).generation.eos_token_ids
    base = base_of(executor, samples, ends)
    own = loss_over(base.logits, base.logits, samples, lambda s: s.scored)
    every = loss_over(base.logits, base.logits, samples, lambda s: list(range(1, len(s.ids))))
    num_scored = sum(len(s.scored) for s in samples)
    num_tokens = sum(len(s.ids) - 1 for s in samples)
    print(f"{num_scored} tokens of answers, perplexity {own.perplexity.mean:.4f};", end=" ")
    print(f"{num_tokens} tokens in all, perplexity {every.perplexity.mean:.3f};", end=" ")
    print(f"greedy answers of {np.mean([len(a) for a in base.answers]):.1f} tokens\n")
    print("| scheme | perplexity | KL | same best | all: perplexity | KL | same best | greedy |")
    print("|---|---|---|---|---|---|---|---|")
    schemes = OF_OUTLIERS if given.outliers else PARTS if given.parts else SCHEMES
    if given.kv_only:
        schemes = [Scheme("unquantized")]
    for scale in OUTLIER_SCALES if given.outliers else (1,):
        for how in schemes:
            for kv_name in given.kv_dtype if given.only in how.name else ():
                executor = build(given.model, how, scale, kv_name)
                name = f"s = {scale}: {how.name}" if given.outliers else how.name
                if given.kv_dtype != ["float32"]:
                    name += f", KV {kv_name}"
                report(name, base, executor, samples, ends)
                executor.close()
    if given.outliers:
        layer_errors()


if __name__ == "__main__":
    main()
