"""A model of one run, for another to start from."""

from __future__ import annotations

from pathlib import Path

import torch
from tools.demo_model import TEXT_MODEL_DIR
from tools.demo_model.phone_trainer import Trainer


def test_a_run_starts_from_the_model_of_another(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = Trainer(tmp_path / "first", TEXT_MODEL_DIR)
    first.average = {k: v + 0.25 for k, v in first.average.items()}
    first.save()
    torch.manual_seed(2)
    second = Trainer(tmp_path / "second", TEXT_MODEL_DIR, start_from=tmp_path / "first" / "model")
    assert second.has_lookup
    weights = second.model.state_dict()
    assert weights.keys() == first.average.keys()
    for name, expected in first.average.items():
        assert torch.equal(weights[name], expected.to(torch.bfloat16).float()), name
        assert torch.equal(weights[name], second.average[name]), name
