"""Weights of one run, for another to start from."""

from __future__ import annotations

from pathlib import Path

import torch
from tools.demo_model.phone_trainer import Trainer

from hearth.cli.settings import BUILT_IN_DIR


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = Trainer(tmp_path / "first", BUILT_IN_DIR)
    first.average = {k: v + 0.25 for k, v in first.average.items()}
    first.write_start(tmp_path / "start.safetensors")
    torch.manual_seed(2)
    second = Trainer(tmp_path / "second", BUILT_IN_DIR, start_from=tmp_path / "start.safetensors")
    assert second.has_lookup
    weights = second.model.state_dict()
    assert weights.keys() == first.average.keys()
    for name, expected in first.average.items():
        assert torch.equal(weights[name], expected.to(torch.bfloat16).float()), name
    for name, value in first.heads.state_dict().items():
        kept = value.to(torch.bfloat16).float() if value.is_floating_point() else value
        assert torch.equal(second.heads.state_dict()[name], kept), name
