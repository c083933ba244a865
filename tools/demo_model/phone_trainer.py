"""One process's share of training the phone agent: the model, its optimizer, its average.

Every process holds the same weights: gradients are averaged before the optimizer's step, and the
learning rate and the progress are those of the first process.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tools.demo_model import phone_model
from tools.demo_model.phone_batches import NAMES, BatchMaker
from tools.demo_model.phone_export import export_phone_model
from tools.demo_model.phone_lookup import lookup_parameters, train_lookup
from tools.demo_model.phone_losses import CellHeads
from tools.demo_model.phone_model import new_model
from tools.demo_model.phone_tokenizer import extended_tokenizer
from tools.demo_model.tokenizer import token_id
from torch import distributed

STATE_FILE = "training.pt"
MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.02
AVERAGE_DECAY = 0.99


class Trainer:
    """Owns `training.pt` in the output directory, and `model` beside it."""

    def __init__(
        self,
        output: Path,
        text_model: Path,
        *,
        start_from: Path | None = None,
        is_compiled: bool = False,
    ) -> None:
        """`start_from`: an exported model, where there is no `training.pt`."""
        self.output = output
        self.tokenizer = extended_tokenizer(text_model)
        self.maker = BatchMaker(self.tokenizer)
        self.model = new_model(self.tokenizer, text_model)
        pairs = [(self.maker.image, self.maker.image)]
        pairs += [
            (token_id(self.tokenizer, one.en), token_id(self.tokenizer, one.zh)) for one in NAMES
        ]
        self.heads = CellHeads(torch.tensor(pairs))
        self._parameters = [*self.model.parameters(), *self.heads.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._parameters if p.dim() >= 2]},
            {"params": [p for p in self._parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
        )
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.has_lookup = False
        if (output / STATE_FILE).exists():
            self._load()
        elif start_from is not None:
            self._start(start_from)
        if is_compiled:
            phone_model.compile_passes()

    def _load(self) -> None:
        path = self.output / STATE_FILE
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        self.has_lookup = state["has_lookup"]
        print(f"goes on from step {self.step}", flush=True)

    def _start(self, directory: Path) -> None:
        """The weights of an exported model, after its lookup; heads and optimizer begin anew."""
        weights = load_file(directory / "model.safetensors")
        found = {name: weight.float() for name, weight in weights.items()}
        self.model.load_state_dict({**self.model.state_dict(), **found})
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.has_lookup = True
        print(f"starts from {directory}", flush=True)

    def save(self) -> None:
        """Writes the state to go on from, and the averaged weights as a model directory."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / STATE_FILE
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "has_lookup": self.has_lookup,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)
        export_phone_model(self.average, self.model.config, self.tokenizer, self.output / "model")

    def learn_lookup(self, seed: int) -> None:
        """Between the stages: the first layer's attention; every process does the same."""
        if self.has_lookup:
            return
        torch.manual_seed(seed)
        train_lookup(self.model, self.heads, self.maker, seed)
        if distributed.is_initialized():
            for weight in self.model.parameters():
                distributed.broadcast(weight.detach(), 0)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.has_lookup = True

    def freeze_lookup(self, is_frozen: bool) -> None:
        """Keeps the lookup as it is, or lets it learn with the rest."""
        for weight in lookup_parameters(self.model):
            weight.requires_grad_(not is_frozen)

    def update(self, loss: torch.Tensor, learning_rate: float, progress: float) -> float:
        """One step of the optimizer and of the average; returns the first process's progress."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        rate, agreed = self._agree(learning_rate, progress)
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        weights = self.model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(weights.values()), 1 - decay)
        return agreed

    def _agree(self, learning_rate: float, progress: float) -> tuple[float, float]:
        """Averages the gradients over the processes, and takes the first one's numbers."""
        if not distributed.is_initialized():
            return learning_rate, progress
        num = distributed.get_world_size()
        is_first = distributed.get_rank() == 0
        numbers = torch.tensor([learning_rate, progress]) * (num if is_first else 0)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        flat = torch.cat([*(one.flatten() for one in grads), numbers])
        distributed.all_reduce(flat)
        flat /= num
        at = 0
        for one in grads:
            one.copy_(flat[at : at + one.numel()].view_as(one))
            at += one.numel()
        return float(flat[-2]), float(flat[-1])
