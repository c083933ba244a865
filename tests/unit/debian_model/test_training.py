"""How the Debian model is trained: by the clock, resumable, into a directory that is served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.debian_model import train as training
from tools.debian_model.data import Ids
from tools.debian_model.model import model_config
from tools.debian_model.tokenizer import END_ID, read_documents, save
from tools.debian_model.tokenizer import train as train_tokenizer
from tools.debian_model.train import Options, Trainer, learning_rate_share
from transformers import LlamaForCausalLM

from hearth.models.loader import load_model_spec

DOCUMENTS = [f"The file number {i} is read by the program.\n\nIt is kept." for i in range(60)]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SEQUENCE_TOKENS", 16)
    monkeypatch.setattr(training, "TEST_SEQUENCES", 2)


def text_in(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "train.txt"
    path.write_text("".join(f"{one}\n<|endoftext|>\n" for one in DOCUMENTS), encoding="utf-8")
    return path


def options_in(tmp_path: Path, **values: float) -> Options:
    # So long a schedule that its clock decides no digit of the learning rate in the warm-up.
    options = Options(tmp_path, tmp_path, 1e9, 1, 2, 1e-3, 1, 1, bfloat16=False)
    return replace(options, **values)  # type: ignore[arg-type]  # numbers alone are replaced


def ids_of(count: int) -> Ids:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, count).astype(np.uint16)
    return Ids(ids, ids)


def test_documents_of_a_text_are_those_that_were_written(tmp_path: Path) -> None:
    assert read_documents(text_in(tmp_path)) == DOCUMENTS


def test_the_tokenizer_gives_every_byte_back_and_ends_documents_with_its_only_special_token(
    tmp_path: Path,
) -> None:
    tokenizer = train_tokenizer(text_in(tmp_path))
    odd = "Zoë’s file №7\t\x00😀 1234\n"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd
    assert tokenizer.encode("a<|endoftext|>").ids[-1] == END_ID
    assert "12" not in tokenizer.get_vocab()


def test_the_rate_warms_up_by_steps_and_falls_by_the_clock() -> None:
    shares = [learning_rate_share(1000, done / 10) for done in range(11)]
    assert shares[0] == pytest.approx(1)
    assert sorted(shares, reverse=True) == shares
    assert learning_rate_share(1000, 1.5) == shares[-1] == pytest.approx(0.03)
    assert learning_rate_share(5, 0.0) == pytest.approx(6 / training.WARMUP_STEPS)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    sequence = np.tile(np.arange(8, dtype=np.uint16), 40)
    trainer = Trainer(options_in(tmp_path), Ids(sequence, sequence))
    before = trainer.test_loss()
    for _ in range(8):
        trainer.step()
    assert trainer.test_loss() < before - 0.1
    assert trainer.progress.num_tokens == 8 * 2 * 16


def test_gradients_by_parts_of_the_logits_are_those_of_the_whole_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(options_in(tmp_path), ids_of(400))
    batch = trainer.ids.draw(np.random.default_rng(0), 2, 16)
    logits = trainer.model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    wanted = torch.autograd.grad(loss, list(trainer.model.parameters()))
    monkeypatch.setattr(training, "LOSS_TOKENS", 5)
    assert trainer._backward(batch) == pytest.approx(loss.item(), rel=1e-6)
    for parameter, gradient in zip(trainer.model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = Trainer(options_in(tmp_path), ids_of(400))
    for _ in range(2):
        whole.step()
    whole.checkpoint()
    lost = [whole.step() for _ in range(2)]
    resumed = Trainer(options_in(tmp_path), ids_of(400))
    assert resumed.progress.step == 2
    assert [resumed.step() for _ in range(2)] == lost
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.part").write_bytes(b"half")
    assert Trainer(options_in(tmp_path), ids_of(400)).progress.step == 0


def test_the_schedule_ends_and_leaves_a_directory_that_hearth_and_transformers_load(
    tmp_path: Path,
) -> None:
    save(train_tokenizer(text_in(tmp_path)), tmp_path)
    (tmp_path / "test.txt").write_text((tmp_path / "train.txt").read_text())
    training.train(options_in(tmp_path, minutes=0.01))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["done"]
    assert lines[-1]["seconds"] >= 0.6
    loaded = load_model_spec(tmp_path / "model")
    assert loaded.spec.vocab_size == model_config(1).vocab_size
    assert loaded.dtype.value == "bfloat16"
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_all_widths_are_whole_groups_of_128() -> None:
    shapes = [tuple(one.shape) for one in LlamaForCausalLM(model_config(1)).parameters()]
    assert len(shapes) == 11
    assert not [shape for shape in shapes if any(width % 128 for width in shape)]
