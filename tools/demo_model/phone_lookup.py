"""Teaches the phone agent's first two text layers to look a name up in the image.

The text model's six layers are trained; two more, before them, begin here. The first one's
attention learns to go from a name in an answer to the cells of the image that show it, and to
bring back where they are; the second one's to go from an action's coordinates back to that name,
and to bring the place along. Left to itself the whole model finds this way only after thousands of
steps, because every part of it has to be there before any of them helps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tools.demo_model.phone_batches import NAMES, BatchMaker, PhoneBatch
from tools.demo_model.phone_losses import CellHeads, features_of
from tools.demo_model.phone_model import HIDDEN, NUM_LOOKUP_LAYERS, embed, rotated_heads
from tools.demo_model.tokenizer import IGNORED_LABEL
from torch import nn
from torch.nn import functional
from transformers import Glm4vForConditionalGeneration

NUM_BATCHES = 40
NUM_STEPS = 280
LEARNING_RATE = 4e-3
# What a layer adds at first, beside embeddings of about 0.06.
ATTENTION_SIZE, MLP_SIZE = 0.06, 0.002


@dataclass(frozen=True, slots=True)
class Finds:
    """Tokens and what each should attend to, one row for each.

    `rows`, `places` [n]: the tokens. `aims` bool [n, num_tokens]: of their sequence. `centers`
    [n, 2] and `states` [n]: what they should bring back.
    """

    rows: torch.Tensor
    places: torch.Tensor
    aims: torch.Tensor
    centers: torch.Tensor
    states: torch.Tensor


def lookup_parameters(model: Glm4vForConditionalGeneration) -> Iterator[nn.Parameter]:
    """What this stage teaches: attention, and how much it adds."""
    for layer in model.model.language_model.layers[:NUM_LOOKUP_LAYERS]:
        yield from layer.self_attn.parameters()
        yield layer.post_self_attn_layernorm.weight


def train_lookup(
    model: Glm4vForConditionalGeneration, heads: CellHeads, maker: BatchMaker, seed: int
) -> None:
    """Trains the attention of the first two layers; the rest stays as it is."""
    _start(model)
    kept = list(_embedded_batches(model, maker, seed))
    finds = [_finds(model, heads, batch) for batch, _ in kept]
    trained = [one for one in lookup_parameters(model) if one.dim() == 2]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    for step in range(NUM_STEPS):
        at = step % NUM_BATCHES
        batch, hidden = kept[at]
        loss = torch.zeros(())
        for layer, aim in enumerate(finds[at]):
            hidden, missed = _attend(model, heads, layer, hidden, batch, aim)
            loss = loss + missed
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / NUM_STEPS)
        optimizer.step()
        if (step + 1) % NUM_BATCHES == 0:
            print(f"lookup step {step + 1} loss {loss.item():.4f}", flush=True)
    model.zero_grad()
    heads.zero_grad()


def _start(model: Glm4vForConditionalGeneration) -> None:
    with torch.no_grad():
        for layer in model.model.language_model.layers[:NUM_LOOKUP_LAYERS]:
            layer.post_self_attn_layernorm.weight.fill_(ATTENTION_SIZE)
            layer.post_mlp_layernorm.weight.fill_(MLP_SIZE)
            for weight in layer.self_attn.parameters():
                if weight.dim() == 2:
                    nn.init.normal_(weight, std=HIDDEN**-0.5)


def _embedded_batches(
    model: Glm4vForConditionalGeneration, maker: BatchMaker, seed: int
) -> Iterator[tuple[PhoneBatch, torch.Tensor]]:
    maker.question_share = 0.7
    stream = maker.endless(seed, 8)
    for _ in range(NUM_BATCHES):
        batch = next(stream)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = embed(model, batch.ids, features_of(model, batch))
        yield batch, hidden.float()


def _attend(
    model: Glm4vForConditionalGeneration,
    heads: CellHeads,
    number: int,
    hidden: torch.Tensor,
    batch: PhoneBatch,
    finds: Finds,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states after a layer's attention, and how far it is from its aims."""
    text = model.model.language_model
    layer = text.layers[number]
    attn = layer.self_attn
    num_tokens = hidden.shape[1]
    angles = text.rotary_emb(hidden, position_ids=batch.positions)
    q, k, v = rotated_heads(attn, layer.input_layernorm(hidden), *angles)
    scores = q @ k.transpose(-1, -2) * attn.scaling
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -1e9).softmax(-1)
    brought = attn.o_proj((weights @ v).transpose(1, 2).flatten(2))
    found = (weights[finds.rows, :, finds.places] * finds.aims[:, None]).sum(-1)
    said = functional.rms_norm(brought[finds.rows, finds.places], (HIDDEN,))
    digits = torch.cat([finds.centers // 100, finds.centers // 10 % 10], -1).flatten()
    missed = (
        -found.clamp(min=1e-6).log().mean()
        + functional.cross_entropy(heads.place(said).view(-1, 10), digits)
        + functional.cross_entropy(heads.state(said), finds.states)
    )
    return hidden + layer.post_self_attn_layernorm(brought), missed


def _finds(
    model: Glm4vForConditionalGeneration, heads: CellHeads, batch: PhoneBatch
) -> tuple[Finds, Finds]:
    """From names to their cells, and from the rest of an answer to the name before it."""
    vocab_size = len(model.model.language_model.embed_tokens.weight)
    numbers = torch.zeros(vocab_size, dtype=torch.int64)
    for number in range(1, len(NAMES) + 1):
        numbers[heads.names[number]] = number
    named = numbers[batch.ids]
    is_answer = batch.labels != IGNORED_LABEL
    is_shown = (named[..., None] == batch.cells[:, None]).any(-1)
    first, second = _Collected(batch), _Collected(batch)
    for row in range(len(batch.ids)):
        start = int((batch.ids[row] == model.config.image_token_id).int().argmax())
        name_at, shown = 0, None
        for place in is_answer[row].nonzero()[:, 0].tolist():
            if not is_answer[row, place - 1]:
                name_at, shown = 0, None  # another answer begins
            if named[row, place] > 0:
                name_at, shown = place, None
                if is_shown[row, place]:
                    shown = batch.cells[row] == named[row, place]
                    first.add(row, place, shown, start, shown)
            elif shown is not None:
                name = torch.ones(1, dtype=torch.bool)
                second.add(row, place, name, name_at, shown)
    return first.finds(), second.finds()


class _Collected:
    """Finds of one batch, while they are collected."""

    def __init__(self, batch: PhoneBatch) -> None:
        self._batch = batch
        self._rows: list[int] = []
        self._places: list[int] = []
        self._aims: list[torch.Tensor] = []
        self._cells: list[int] = []

    def add(self, row: int, place: int, aim: torch.Tensor, start: int, shown: torch.Tensor) -> None:
        """A token whose aim is `aim` from `start` on, and that is about the cells `shown`."""
        aims = torch.zeros(self._batch.ids.shape[1], dtype=torch.bool)
        aims[start : start + len(aim)] = aim
        self._rows.append(row)
        self._places.append(place)
        self._aims.append(aims)
        self._cells.append(int(shown.int().argmax()))

    def finds(self) -> Finds:
        """All of them."""
        rows, cells = torch.tensor(self._rows), torch.tensor(self._cells)
        batch = self._batch
        return Finds(
            rows,
            torch.tensor(self._places),
            torch.stack(self._aims),
            batch.centers[rows, cells],
            batch.cell_states[rows, cells],
        )
