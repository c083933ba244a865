"""Trains the built-in phone agent: `python -m tools.demo_model.phone_train --output DIR`.

Begins with the text model and a random vision part, or goes on where `DIR/training.pt` stopped.
Three stages: first the vision part alone, from what every cell of a screen shows; then the lookup
of names in the image; then everything, from steps of tasks, questions on screens, and the
conversations of the text model, so that its answers stay. The learning rate follows the clock, so
that a run of any length ends well; the screens are a function of the seed. `DIR/model` gets the
mean of the last weights (an exponential moving average) as a model directory every few minutes.

Two processes (`--processes`), each with a batch of its own and one thread; gradients are averaged
once a step. On cores that other programs use, too, that is several times as fast as two threads
that wait for each other in every operation.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tools.demo_model import TEXT_MODEL_DIR
from tools.demo_model.corpus import draw_conversations
from tools.demo_model.phone_batches import PhoneBatch
from tools.demo_model.phone_losses import (
    answer_loss,
    cell_loss,
    conversation_loss,
    features_of,
)
from tools.demo_model.phone_steps import FIRST_HELD_OUT_SEED
from tools.demo_model.phone_tokenizer import extended_tokenizer
from tools.demo_model.phone_trainer import Trainer
from tools.demo_model.tokenizer import Encoder
from tools.demo_model.train import Batch, make_batches
from torch import distributed
from torch.multiprocessing.spawn import spawn

TEXT_MODEL = TEXT_MODEL_DIR
WARMUP_STEPS = 50
FINAL_SHARE = 0.03
CELL_SHARE = 0.3
TEXT_SHARE = 0.5
TEXT_POOL = 1500
REPORT_STEPS = 25
NUM_HELD_OUT_BATCHES = 6
LONGEST_STEP_S = 20.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides; minutes are of training, by the clock."""

    output: Path
    text_model: Path
    start_from: Path | None
    vision_minutes: float
    minutes: float
    batch_size: int
    text_tokens: int
    learning_rate: float
    question_share: float
    frozen_share: float
    save_minutes: float
    seed: int
    num_processes: int
    is_compiled: bool


def text_batches(options: Options, seed: int) -> Iterator[Batch]:
    """Endless batches of the text model's conversations."""
    encoder = Encoder(extended_tokenizer(options.text_model))
    rng = random.Random(seed)
    while True:
        corpus = draw_conversations(rng.randrange(1 << 30), TEXT_POOL)
        yield from make_batches([encoder.encode(one) for one in corpus], options.text_tokens, rng)


def rate_share(step: int, progress: float) -> float:
    """The share of the peak learning rate after so many steps of a stage, `progress` 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def train_vision(trainer: Trainer, options: Options, rank: int) -> None:
    """The first stage."""
    trainer.maker.question_share = 1.0
    batches = trainer.maker.endless(options.seed * 1000 + rank, options.batch_size)
    clock = _Clock(options.vision_minutes, rank)
    while clock.progress < 1:
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            features = features_of(trainer.model, batch)
        found = cell_loss(trainer.model, trainer.heads, features, batch)
        # The rate ends at a half: the second stage goes on from there.
        rate = options.learning_rate * rate_share(clock.num_steps, clock.progress / 2)
        clock.progress = trainer.update(found.loss, rate, clock.now)
        clock.report(loss=found.loss.item(), name=found.name_accuracy, place=found.place_accuracy)
        if rank == 0 and clock.is_due(options.save_minutes):
            trainer.save()
    if rank == 0 and clock.num_steps:
        trainer.save()


def train_everything(trainer: Trainer, options: Options, rank: int) -> None:
    """The second stage."""
    # Another seed after every restart, so that a run that goes on sees new screens.
    seed = (options.seed + 1 + trainer.step) * 1000 + rank
    batches = trainer.maker.endless(seed, options.batch_size)
    conversations = text_batches(options, seed)
    trainer.maker.question_share = 0.0
    held_out = list(_held_out_batches(trainer)) if rank == 0 else []
    clock = _Clock(options.minutes, rank)
    while clock.progress < 1:
        # Questions teach finding things; steps, which come to lead, what to do with it.
        share = options.question_share * (1.5 - clock.progress)
        trainer.maker.question_share = share
        # Until the rest has learned to use it, its gradients would only take the lookup away.
        trainer.freeze_lookup(clock.progress < options.frozen_share)
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            features = features_of(trainer.model, batch)
            answers = answer_loss(trainer.model, features, batch)
            talk = conversation_loss(trainer.model, next(conversations))
        cells = cell_loss(trainer.model, trainer.heads, features, batch)
        loss = answers.loss + CELL_SHARE * cells.loss + TEXT_SHARE * talk
        rate = options.learning_rate * rate_share(clock.num_steps, clock.progress)
        clock.progress = trainer.update(loss, rate, clock.now)
        clock.report(
            answer=answers.loss.item(),
            right=answers.accuracy,
            text=talk.item(),
            name=cells.name_accuracy,
            place=cells.place_accuracy,
        )
        if rank == 0 and clock.is_due(options.save_minutes):
            trainer.save()
            _report_held_out(trainer, held_out)
    if rank == 0:
        trainer.save()
        _report_held_out(trainer, held_out)


def _held_out_batches(trainer: Trainer) -> Iterator[PhoneBatch]:
    stream = trainer.maker.endless(FIRST_HELD_OUT_SEED, 8)
    for _ in range(NUM_HELD_OUT_BATCHES):
        yield next(stream)


def _report_held_out(trainer: Trainer, batches: list[PhoneBatch]) -> None:
    """The loss of steps on screens that training does not see."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [answer_loss(trainer.model, features_of(trainer.model, b), b) for b in batches]
    loss = sum(one.loss.item() for one in found) / len(found)
    right = sum(one.accuracy for one in found) / len(found)
    steps = sum(one.steps_right for one in found) / len(found)
    print(f"  held out: loss {loss:.4f}, labels {right:.2%}, steps {steps:.2%}", flush=True)


class _Clock:
    """The time of a stage, and its reports: the means of the last steps.

    `progress` is what all processes have agreed on, `now` what this process's clock says. A stop
    of the whole process (SIGSTOP, a sleeping machine) counts as one long step.
    """

    def __init__(self, minutes: float, rank: int) -> None:
        self._minutes = minutes
        self._rank = rank
        self._last_step = self._last_save = time.monotonic()
        self._seconds = 0.0
        self.progress = 0.0 if minutes > 0 else 1.0
        self.num_steps = 0
        self._sums: dict[str, float] = {}

    @property
    def now(self) -> float:
        """0 to 1 over the stage."""
        return self._seconds / 60 / self._minutes

    def is_due(self, minutes: float) -> bool:
        """Whether so many minutes have passed since this was last true."""
        now = time.monotonic()
        if now - self._last_save < minutes * 60:
            return False
        self._last_save = now
        return True

    def report(self, **values: float) -> None:
        """One more step; the first process prints every few."""
        now = time.monotonic()
        self._seconds += min(now - self._last_step, LONGEST_STEP_S)
        self._last_step = now
        self.num_steps += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.num_steps % REPORT_STEPS == 0:
            text = " ".join(f"{k} {v / REPORT_STEPS:.4f}" for k, v in self._sums.items())
            if self._rank == 0:
                print(f"step {self.num_steps} {self._seconds:.0f} s {text}", flush=True)
            self._sums.clear()


def run(rank: int, options: Options, meeting_place: str) -> None:
    """One process of the training."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    distributed.init_process_group(
        "gloo", f"file://{meeting_place}", rank=rank, world_size=options.num_processes
    )
    trainer = Trainer(
        options.output,
        options.text_model,
        start_from=options.start_from,
        is_compiled=options.is_compiled,
    )
    train_vision(trainer, options, rank)
    trainer.learn_lookup(options.seed)
    train_everything(trainer, options, rank)
    distributed.destroy_process_group()


def parse_options() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text-model", type=Path, default=TEXT_MODEL)
    parser.add_argument("--start-from", type=Path, help="an exported model of another run")
    parser.add_argument("--vision-minutes", type=float, default=12.0)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--batch-size", type=int, default=8, help="screens of each process")
    parser.add_argument("--text-tokens", type=int, default=400, help="of each process")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--question-share", type=float, default=0.4)
    parser.add_argument(
        "--frozen-share", type=float, default=0.6, help="of the time, during which lookup rests"
    )
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    return Options(
        output=given.output,
        text_model=given.text_model,
        start_from=given.start_from,
        vision_minutes=given.vision_minutes,
        minutes=given.minutes,
        batch_size=given.batch_size,
        text_tokens=given.text_tokens,
        learning_rate=given.learning_rate,
        question_share=given.question_share,
        frozen_share=given.frozen_share,
        save_minutes=given.save_minutes,
        seed=given.seed,
        num_processes=given.processes,
        is_compiled=not given.no_compile,
    )


def main() -> None:
    """Both stages, in all processes."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, f"{folder}/meeting")
        spawn(run, arguments, nprocs=options.num_processes)  # type: ignore[no-untyped-call]  # torch


if __name__ == "__main__":
    main()
