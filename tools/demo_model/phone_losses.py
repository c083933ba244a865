"""The losses of the phone agent: answers, and what every cell of an image shows.

The cells' losses need no text model and have a label for each of the hundred cells of a screen,
which is why a random vision part learns from them first. The name of an element is read from its
cells with the embedding of that name, so that afterwards the text part finds it by likeness.
Their heads are of training alone and are not exported.
"""

from dataclasses import dataclass

import torch
from tools.demo_model.phone_batches import PhoneBatch
from tools.demo_model.phone_model import HIDDEN, embed, text_pass, vision_pass
from tools.demo_model.tokenizer import IGNORED_LABEL
from tools.demo_model.train import Batch
from torch import nn
from torch.nn import functional
from transformers import Glm4vForConditionalGeneration

# Most cells show nothing; their weight keeps them from deciding everything.
NOTHING_WEIGHT = 0.2
NUM_STATES = 4
NUM_DIGIT_CLASSES = 40  # tens and units of x and y in hundredths: four times ten


class CellHeads(nn.Module):
    """Reads a cell's features: the name, the state, the place.

    `names` [num_names, 2]: the tokens of each name in both languages; the first row is of nothing.
    A cell says both at once, so that it need not know the language of the screen.
    """

    def __init__(self, names: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.state = nn.Linear(HIDDEN, NUM_STATES)
        self.place = nn.Linear(HIDDEN, NUM_DIGIT_CLASSES)
        self.names: torch.Tensor
        self.register_buffer("names", names, persistent=False)
        weights = torch.ones(len(names))
        weights[0] = NOTHING_WEIGHT
        self.weights: torch.Tensor
        self.register_buffer("weights", weights, persistent=False)


@dataclass(frozen=True, slots=True)
class CellLoss:
    """The loss to descend, and the share of elements' cells whose name is right."""

    loss: torch.Tensor
    name_accuracy: float
    place_accuracy: float


def cell_loss(
    model: Glm4vForConditionalGeneration,
    heads: CellHeads,
    features: torch.Tensor,
    batch: PhoneBatch,
) -> CellLoss:
    """What the cells of a batch should show."""
    flat = functional.rms_norm(features.float(), (HIDDEN,)).flatten(0, 1)
    # The embedding is a fixed aim here: a moving one is learned several times as slowly.
    table = model.model.language_model.embed_tokens.weight.detach()[heads.names].mean(1)
    logits = functional.linear(flat, functional.rms_norm(table, (HIDDEN,))) * heads.scale
    wanted = batch.cells.flatten()
    # Names are what takes longest.
    loss = 2 * functional.cross_entropy(logits / HIDDEN**0.5, wanted, heads.weights)
    states = batch.cell_states.flatten()
    is_element = wanted != 0
    loss = loss + functional.cross_entropy(heads.state(flat[is_element]), states[is_element])
    centers = batch.centers.flatten(0, 1)[is_element]
    digits = torch.cat([centers // 100, centers // 10 % 10], -1)  # x, y; x, y
    places = heads.place(flat[is_element]).view(-1, 4, 10)
    loss = loss + functional.cross_entropy(places.flatten(0, 1), digits.flatten())
    with torch.no_grad():
        is_named = wanted > 0
        right = (logits[is_named].argmax(-1) == wanted[is_named]).float().mean()
        at_place = (places.argmax(-1)[:, :2] == digits[:, :2]).all(-1).float().mean()
    return CellLoss(loss, right.item(), at_place.item())


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss, and how often the likeliest token is the right one (last digits do not count).

    `accuracy`: of the labels; `steps_right`: of the examples, in all their labels.
    """

    loss: torch.Tensor
    accuracy: float
    steps_right: float


def answer_loss(
    model: Glm4vForConditionalGeneration, features: torch.Tensor, batch: PhoneBatch
) -> AnswerLoss:
    """The weighted cross entropy of the answers' tokens."""
    hidden = text_pass(model, embed(model, batch.ids[:, :-1], features), batch.positions[:, :, :-1])
    targets, weights = batch.labels[:, 1:], batch.weights[:, 1:]
    wanted = targets != IGNORED_LABEL
    logits = model.lm_head(hidden[wanted]).float()
    each = functional.cross_entropy(logits, targets[wanted], reduction="none")
    weight = weights[wanted]
    with torch.no_grad():
        counted = weight >= 1
        right = logits.argmax(-1) == targets[wanted]
        wrong_rows = wanted.nonzero()[:, 0][counted & ~right].tolist()
        steps_right = 1 - len(set(wrong_rows)) / len(batch.ids)
        accuracy = right[counted].float().mean().item()
    return AnswerLoss((each * weight).sum() / weight.sum(), accuracy, steps_right)


def conversation_loss(model: Glm4vForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """The mean cross entropy of the answers of conversations without images."""
    ids = batch.ids[:, :-1]
    positions = torch.arange(ids.shape[1]).expand(3, len(ids), -1)
    hidden = text_pass(model, embed(model, ids, None), positions)
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORED_LABEL
    return functional.cross_entropy(model.lm_head(hidden[wanted]).float(), targets[wanted])


def features_of(model: Glm4vForConditionalGeneration, batch: PhoneBatch) -> torch.Tensor:
    """The image features of a batch."""
    return vision_pass(model, batch.patches, batch.rows, batch.columns)
