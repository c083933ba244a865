"""Trains the text model from nothing: `python -m tools.demo_model.train`.

Makes the text, trains the tokenizer, trains a small Glm4ForCausalLM on a CPU and exports it; or,
with `--start-from` and another `--seed`, goes on from an exported directory with new text. Given
the same options and library versions the text and the order of the batches are always the same.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tools.demo_model import TEXT_MODEL_DIR
from tools.demo_model.corpus import (
    HELD_OUT_PATH,
    count_overlap,
    draw_conversations,
    read_questions,
)
from tools.demo_model.export import export_model, model_config
from tools.demo_model.tokenizer import IGNORED_LABEL, Encoded, Encoder, train_tokenizer
from torch.nn import functional
from transformers import Glm4ForCausalLM

DEFAULT_OUTPUT = TEXT_MODEL_DIR
TOKENIZER_CONVERSATIONS = 40_000
# Conversations are sorted by length within a pool, so that batches waste little on padding.
POOL_BATCHES = 40
WARMUP_STEPS = 150
FINAL_LEARNING_RATE_SHARE = 0.02
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
REPORT_STEPS = 50


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides."""

    output: Path
    start_from: Path | None
    num_conversations: int
    batch_tokens: int
    learning_rate: float
    export_steps: int
    seed: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded ids and labels, both int64 [num_sequences, num_tokens]."""

    ids: torch.Tensor
    labels: torch.Tensor


def make_batches(encoded: list[Encoded], batch_tokens: int, rng: random.Random) -> list[Batch]:
    """Batches of at most `batch_tokens` padded tokens, in random order."""
    order = list(range(len(encoded)))
    rng.shuffle(order)
    mean_tokens = sum(len(one.ids) for one in encoded) / len(encoded)
    pool_size = max(1, int(POOL_BATCHES * batch_tokens / mean_tokens))
    batches: list[Batch] = []
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lambda at: len(encoded[at].ids))
        groups = list(_groups([encoded[at] for at in pool], batch_tokens))
        rng.shuffle(groups)
        batches += [_pad(group) for group in groups]
    return batches


def _groups(ordered: list[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for one in ordered:
        if group and (len(group) + 1) * len(one.ids) > batch_tokens:
            yield group
            group = []
        group.append(one)
    yield group


def _pad(group: list[Encoded]) -> Batch:
    width = max(len(one.ids) for one in group)
    ids = torch.zeros(len(group), width, dtype=torch.int64)
    labels = torch.full((len(group), width), IGNORED_LABEL, dtype=torch.int64)
    for row, one in enumerate(group):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, : len(one.labels)] = torch.tensor(one.labels)
    return Batch(ids, labels)


def learning_rate_share(step: int, num_steps: int) -> float:
    """The share of the peak learning rate: linear warm-up, then half a cosine."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine


def batch_loss(model: Glm4ForCausalLM, batch: Batch) -> torch.Tensor:
    """The mean cross entropy of the answer tokens.

    Padding stands at the right, where causal attention never looks back from an answer, so no
    attention mask is needed; logits are computed for answer positions alone.
    """
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORED_LABEL
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[wanted])
    return functional.cross_entropy(logits, targets[wanted])


def make_optimizer(model: Glm4ForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, not norms and biases."""
    matrices = [one for one in model.parameters() if one.dim() >= 2]
    vectors = [one for one in model.parameters() if one.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def train(options: Options) -> None:
    """Runs the whole training and writes the exported directory."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.num_threads)
    tokenizer = _make_tokenizer(options)
    encoder = Encoder(tokenizer)
    corpus = draw_conversations(options.seed, options.num_conversations)
    encoded = [encoder.encode(one) for one in corpus]
    num_tokens = sum(len(one.ids) for one in encoded)
    rng = random.Random(options.seed)
    batches = make_batches(encoded, options.batch_tokens, rng)
    _report_data(options, num_tokens, len(batches))
    del encoded
    model = _make_model(options, tokenizer)
    print(f"{sum(one.numel() for one in model.parameters()):,} parameters", flush=True)
    start = time.monotonic()
    loss = _run_steps(
        model, batches, options, lambda: export_model(model, tokenizer, options.output)
    )
    export_model(model, tokenizer, options.output)
    elapsed_s = time.monotonic() - start
    print(
        f"done: final loss {loss:.4f}, {elapsed_s / 60:.1f} min, "
        f"{num_tokens / elapsed_s:,.0f} tokens/s"
    )


def _make_tokenizer(options: Options) -> Tokenizer:
    if options.start_from:
        return Tokenizer.from_file(str(options.start_from / "tokenizer.json"))
    return train_tokenizer(draw_conversations(options.seed + 1, TOKENIZER_CONVERSATIONS))


def _make_model(options: Options, tokenizer: Tokenizer) -> Glm4ForCausalLM:
    if options.start_from:
        return Glm4ForCausalLM.from_pretrained(options.start_from, dtype=torch.float32)
    return Glm4ForCausalLM(model_config(tokenizer))


def _report_data(options: Options, num_tokens: int, num_batches: int) -> None:
    questions = [str(row["question"]) for row in read_questions(HELD_OUT_PATH)]
    corpus = draw_conversations(options.seed, options.num_conversations)
    overlap = count_overlap(corpus, questions)
    print(
        f"{options.num_conversations:,} conversations, {num_tokens:,} tokens, "
        f"{num_batches:,} steps; {overlap} of {len(questions)} held-out questions in the text",
        flush=True,
    )
    if overlap:
        raise RuntimeError(f"{overlap} held-out questions occur in the training text")


def _run_steps(
    model: Glm4ForCausalLM, batches: list[Batch], options: Options, export: Callable[[], None]
) -> float:
    """Trains one step per batch; returns the mean loss of the last reported steps."""
    optimizer = make_optimizer(model, options.learning_rate)
    model.train()
    start, total, mean = time.monotonic(), 0.0, 0.0
    for step, batch in enumerate(batches):
        share = learning_rate_share(step, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        loss = batch_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % REPORT_STEPS == 0:
            mean, total = total / REPORT_STEPS, 0.0
            elapsed_s = time.monotonic() - start
            print(f"step {step + 1}/{len(batches)} loss {mean:.4f} {elapsed_s:.0f} s", flush=True)
        if (step + 1) % options.export_steps == 0:
            export()
    return mean


def parse_options() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--start-from", type=Path, help="go on from this exported directory")
    parser.add_argument("--conversations", type=int, default=115_000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--export-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    return Options(
        output=given.output,
        start_from=given.start_from,
        num_conversations=given.conversations,
        batch_tokens=given.batch_tokens,
        learning_rate=given.learning_rate,
        export_steps=given.export_steps,
        seed=given.seed,
        num_threads=given.threads,
    )


if __name__ == "__main__":
    train(parse_options())
