"""How the phone agent's first layers learn to look names up: what they should find, and that it is
what they come nearer to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tools.demo_model import TEXT_MODEL_DIR, phone_lookup
from tools.demo_model.phone_lookup import Finds, train_lookup
from tools.demo_model.phone_model import NUM_LOOKUP_LAYERS
from tools.demo_model.phone_trainer import Trainer
from tools.demo_model.tokenizer import IGNORED_LABEL

NUM_STEPS = 5


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    torch.manual_seed(1)
    return Trainer(tmp_path, TEXT_MODEL_DIR)


def aims_of(finds: Finds) -> list[tuple[int, int, list[int]]]:
    """(row, place, the places that it should attend to) of every token."""
    rows, places = finds.rows.tolist(), finds.places.tolist()
    aims = [one.nonzero()[:, 0].tolist() for one in finds.aims]
    return list(zip(rows, places, aims, strict=True))


def test_a_name_looks_at_its_cells_and_what_follows_it_at_the_name(trainer: Trainer) -> None:
    trainer.maker.question_share = 1.0
    batch = next(trainer.maker.endless(1, 4))
    by_name, by_rest = phone_lookup._finds(trainer.model, trainer.heads, batch)
    numbers = {
        token: number for number, pair in enumerate(trainer.heads.names.tolist()) for token in pair
    }
    centers = {}
    for index, (row, place, aims) in enumerate(aims_of(by_name)):
        assert batch.labels[row, place] == batch.ids[row, place]
        assert {int(token) for token in batch.ids[row, aims]} == {trainer.maker.image}
        start = batch.ids[row].tolist().index(trainer.maker.image)
        cells = batch.cells[row] == numbers[int(batch.ids[row, place])]
        assert aims == [start + int(cell) for cell in cells.nonzero()[:, 0]]
        assert by_name.centers[index].tolist() in batch.centers[row, cells].tolist()
        assert by_name.states[index] in batch.cell_states[row, cells]
        centers[row, place] = by_name.centers[index].tolist()
    assert len(centers) > 4
    for index, (row, place, aims) in enumerate(aims_of(by_rest)):
        (name_at,) = aims
        assert name_at < place
        assert IGNORED_LABEL not in batch.labels[row, name_at : place + 1], "of the same answer"
        assert by_rest.centers[index].tolist() == centers[row, name_at]
    assert len(by_rest.rows) > len(centers)


def test_only_the_lookup_is_taught_and_it_misses_less_and_less(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = trainer.maker.endless
    monkeypatch.setattr(trainer.maker, "endless", lambda seed, _: endless(seed, 2))
    monkeypatch.setattr(phone_lookup, "NUM_BATCHES", 1)
    monkeypatch.setattr(phone_lookup, "NUM_STEPS", NUM_STEPS)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    train_lookup(trainer.model, trainer.heads, trainer.maker, seed=1)
    losses = [float(one) for one in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == NUM_STEPS
    assert losses[-1] < losses[0] - 0.5, losses
    after = trainer.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layers = [f"model.language_model.layers.{layer}." for layer in range(NUM_LOOKUP_LAYERS)]
    matrices = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    sizes = ["post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"]
    assert changed == {layer + name for layer in layers for name in [*matrices, *sizes]}
    assert all(
        weight.grad is None or not weight.grad.any() for weight in trainer.model.parameters()
    )
