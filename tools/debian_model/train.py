"""Trains the Debian model on a CPU: `python -m tools.debian_model.train CORPUS WORK --minutes 60`.

WORK holds the tokenizer, the ids of both texts, a checkpoint from which a killed run goes on, the
log (`log.jsonl`) and at last `model`, the directory to serve. The schedule runs by the time spent
training, not by steps: it ends well on a machine of any speed, however busy.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tools.debian_model.data import Ids, encode_texts
from tools.debian_model.model import model_config, save
from torch.nn import functional
from transformers import LlamaForCausalLM

SEQUENCE_TOKENS = 512
WARMUP_STEPS = 60
FINAL_LEARNING_RATE_SHARE = 0.03
WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0
TEST_SEQUENCES = 32
TEST_SECONDS = 300.0
CHECKPOINT_SECONDS = 180.0
REPORT_STEPS = 10
# Logits of so many tokens exist at a time: whole batches of them are slow to write and to read.
LOSS_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides."""

    corpus: Path
    work: Path
    minutes: float
    num_layers: int
    batch_sequences: int
    learning_rate: float
    seed: int
    num_threads: int
    bfloat16: bool


@dataclass(slots=True)
class Progress:
    """What a checkpoint keeps beside the weights; seconds are of training alone."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """One model, its optimizer and its progress, in memory and on disk."""

    def __init__(self, options: Options, ids: Ids) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.ids = ids
        config = model_config(options.num_layers)
        # At 512 tokens torch's fused attention is slower on a CPU than two matrix products.
        config._attn_implementation = "eager"
        self.model = LlamaForCausalLM(config)
        self.optimizer = _optimizer(self.model, options.learning_rate)
        self.progress = Progress()
        self._path = options.work / "checkpoint.pt"
        if self._path.exists():
            self._resume()

    @property
    def share_done(self) -> float:
        """Of the schedule, from 0 to 1 and above."""
        return self.progress.seconds / (60 * self.options.minutes)

    def step(self) -> float:
        """One batch forward and back; returns its loss in nats a token."""
        begin = time.monotonic()
        rate = self.options.learning_rate * learning_rate_share(self.progress.step, self.share_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Seeded by the step: a resumed run draws what the killed one would have drawn.
        rng = np.random.default_rng((self.options.seed, self.progress.step))
        batch = self.ids.draw(rng, self.options.batch_sequences, SEQUENCE_TOKENS)
        loss = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.num_tokens += batch[:, 1:].numel()
        self.progress.seconds += time.monotonic() - begin
        return loss

    def _backward(self, batch: torch.Tensor) -> float:
        """Adds the gradients of int64 [num_sequences, num_tokens + 1]; returns the mean loss."""
        with self._autocast():
            hidden = self.model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        hidden, targets = hidden.flatten(0, 1), batch[:, 1:].flatten()
        leaf = hidden.detach().requires_grad_()
        loss = 0.0
        for rows, wanted in zip(
            *(torch.split(t, LOSS_TOKENS) for t in (leaf, targets)), strict=True
        ):
            with self._autocast():
                logits = self.model.lm_head(rows)
            part = functional.cross_entropy(logits.float(), wanted, reduction="sum")
            part = part / targets.numel()
            part.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss += part.item()
        hidden.backward(leaf.grad)
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.options.bfloat16)

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of int64 [num_sequences, num_tokens + 1]."""
        with self._autocast():
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    @torch.inference_mode()
    def test_loss(self) -> float:
        """Of the first sequences of the held-out text, the same ones every time."""
        self.model.train(False)
        batch = self.ids.test(TEST_SEQUENCES, SEQUENCE_TOKENS)
        losses = [self._loss(one[None]).item() for one in batch]
        self.model.train()
        return sum(losses) / len(losses)

    def checkpoint(self) -> None:
        """Writes everything that going on needs, in one step. Raises OSError."""
        draft = self._path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, draft)
        draft.replace(self._path)

    def _resume(self) -> None:
        state = torch.load(self._path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def export(self) -> None:
        """Writes the directory to serve. Raises OSError."""
        save(self.model, self.options.work, self.options.work / "model")


def learning_rate_share(step: int, done: float) -> float:
    """Of the peak: half a cosine over the share of the time, below a linear warm-up by steps."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    share = FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine
    return min(share, (step + 1) / WARMUP_STEPS)


def _optimizer(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, not norms."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def train(options: Options) -> None:
    """Trains to the end of the schedule and exports. Raises OSError."""
    torch.set_num_threads(options.num_threads)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    trainer = Trainer(options, encode_texts(tokenizer, options.corpus, options.work))
    _log(options, parameters=sum(p.numel() for p in trainer.model.parameters()))
    tested_at = saved_at = trainer.progress.seconds
    losses: list[float] = []
    begin, tokens = time.monotonic(), trainer.progress.num_tokens
    while trainer.share_done < 1:
        losses.append(trainer.step())
        progress = trainer.progress
        if len(losses) == REPORT_STEPS:
            rate = (progress.num_tokens - tokens) / (time.monotonic() - begin)
            _log(options, **asdict(progress), loss=sum(losses) / len(losses), tokens_per_s=rate)
            losses, begin, tokens = [], time.monotonic(), progress.num_tokens
        if progress.seconds - tested_at > TEST_SECONDS:
            _log(options, step=progress.step, test_loss=trainer.test_loss())
            tested_at, begin, tokens = progress.seconds, time.monotonic(), progress.num_tokens
        if progress.seconds - saved_at > CHECKPOINT_SECONDS:
            trainer.checkpoint()
            trainer.export()
            saved_at = progress.seconds
    trainer.checkpoint()
    trainer.export()
    _log(options, **asdict(trainer.progress), test_loss=trainer.test_loss(), done=True)


def _log(options: Options, **values: float) -> None:
    rounded = {key: round(value, 4) for key, value in values.items()}
    line = json.dumps({"clock": time.strftime("%H:%M:%S"), **rounded})
    print(line, flush=True)
    with (options.work / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def parse_options() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what tools.debian_model.corpus wrote")
    parser.add_argument("work", type=Path, help="where the tokenizer lies and all else goes")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, resumed or not")
    parser.add_argument("--layers", dest="num_layers", type=int, default=8)
    parser.add_argument("--batch-sequences", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", dest="num_threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    train(parse_options())
