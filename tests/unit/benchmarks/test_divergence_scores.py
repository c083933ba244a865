"""How the quantization table makes figures of logits, and which rows it has."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.divergence_scores import Logits, Reference, Score, score_of, spread
from benchmarks.quantization_rows import GROUP_SIZES, METHODS, Setting, make_checkpoint, rows_of
from benchmarks.quantization_table import Result, Table
from benchmarks.quantize_worker import message_of
from tools.demo_model import TEXT_MODEL_DIR
from torch.nn import functional

from hearth.core.errors import CapacityError, ConfigError, HearthError, KernelError
from hearth.models.loader import load_model_spec

SEQUENCES, LENGTH, VOCABULARY = 5, 7, 40


def random_logits(seed: int) -> Logits:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (SEQUENCES, LENGTH, VOCABULARY)).astype(np.float32)


def tokens() -> list[list[int]]:
    drawn: list[list[int]] = (
        np.random.default_rng(9).integers(0, VOCABULARY, (SEQUENCES, LENGTH)).tolist()
    )
    return drawn


def scored(tmp_path: Path, ours: Logits, theirs: Logits) -> Score:
    reference = Reference(tmp_path / "logits", tokens(), VOCABULARY)
    reference.fill(ours)
    score = reference.score(theirs)
    reference.close()
    assert not (tmp_path / "logits").exists()
    return score


def test_figures_are_those_of_torch(tmp_path: Path) -> None:
    ours, theirs = random_logits(1), random_logits(1) + 0.3 * random_logits(2)
    score = scored(tmp_path, ours, theirs)
    p, q = (torch.from_numpy(one[:, :-1]).double().flatten(0, 1) for one in (ours, theirs))
    following = torch.tensor(tokens())[:, 1:].flatten()
    own, other = (functional.cross_entropy(one, following) for one in (p, q))
    kl = functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert score.num_tokens == SEQUENCES * (LENGTH - 1)
    assert score.perplexity.mean == pytest.approx(float(other.exp()), rel=1e-9)
    assert score.change.mean == pytest.approx(float((other - own).exp() - 1), rel=1e-9)
    assert score.kl.mean == pytest.approx(float(kl), rel=1e-9)
    same = (p.argmax(1) == q.argmax(1)).double().mean()
    assert score.top1.mean == pytest.approx(float(same))


def test_equal_logits_lose_nothing_and_a_constant_on_all_of_them_is_none(tmp_path: Path) -> None:
    score = scored(tmp_path, random_logits(1), random_logits(1) + np.float32(2))
    assert score.change.mean == pytest.approx(0, abs=1e-6)
    assert score.kl.mean == pytest.approx(0, abs=1e-6)
    assert score.top1.mean == 1


def test_errors_are_over_sequences_so_that_tokens_that_err_together_count_once() -> None:
    rng = np.random.default_rng(3)
    of_sequences = rng.normal(0, 1, (200, 1, 1))
    columns = np.zeros((200, 4, 50))
    columns[:, 1:2] = of_sequences  # all tokens of a sequence alike
    error = score_of(columns).change.error / (1 + score_of(columns).change.mean)
    assert error == pytest.approx(1 / np.sqrt(200), rel=0.15)


def test_logits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    broken = random_logits(1)
    broken[2, 3, 4] = np.nan
    with pytest.raises(KernelError, match="not finite"):
        scored(tmp_path, random_logits(1), broken)


def test_a_reference_that_the_disk_has_no_room_for_is_refused_before_it_is_computed(
    tmp_path: Path,
) -> None:
    with pytest.raises(CapacityError, match="free"):
        Reference(tmp_path / "logits", [[0] * 4096] * 4096, 1 << 30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 3, 10, 50])
def test_pieces_are_spread_over_the_text_and_do_not_overlap(count: int) -> None:
    pieces = spread(range(1000), count, 96)
    assert len(pieces) == min(count, 10)
    starts = [one[0] for one in pieces]
    assert all(len(one) == 96 and one == list(range(one[0], one[0] + 96)) for one in pieces)
    assert all(later - earlier >= 96 for earlier, later in itertools.pairwise(starts))
    assert count == 1 or starts[-1] == 864


def test_a_short_text_has_no_pieces() -> None:
    assert spread(range(10), 5, 96) == []


def test_every_scheme_meets_every_method_and_group_size() -> None:
    rows = rows_of()
    labels = [row.label for row in rows]
    assert len(set(labels)) == len(labels)
    for scheme in ("w4a16", "w4a16-asym"):
        found = {(row.method, row.group_size) for row in rows if row.scheme == scheme}
        assert found == {(method, group) for method in METHODS for group in GROUP_SIZES}


def setting_in(directory: Path) -> Setting:
    return Setting(TEXT_MODEL_DIR, directory, directory / "no-peers", 1, None)


def small_table(directory: Path) -> Table:
    ids = np.random.default_rng(0).integers(0, 3000, (3, 48)).tolist()
    return Table(setting_in(directory), ids)


def measured(table: Table, label: str) -> Result:
    return table.measure(next(row for row in rows_of() if row.label == label))


def test_a_checkpoint_is_made_measured_and_removed(tmp_path: Path) -> None:
    table = small_table(tmp_path)
    table.begin()
    int8, int4 = (measured(table, f"hearth {name} rtn g128") for name in ("INT8", "INT4"))
    table.close()
    assert 0 < int8.score.kl.mean < int4.score.kl.mean / 5
    assert int4.made.file_bytes < int8.made.file_bytes < 6_100_000
    assert int8.made.seconds > 0
    assert int8.made.peak_bytes > 20_000_000
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    table = small_table(tmp_path)
    table.begin()
    with pytest.raises(ConfigError, match="peers install"):
        measured(table, "llama.cpp llama.cpp Q4_0  g0")
    table.close()
    assert load_model_spec(TEXT_MODEL_DIR).stored is None
    row = next(row for row in rows_of() if row.scheme == "w4a16")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(HearthError, match="out"):
        make_checkpoint(setting_in(tmp_path), row, tmp_path / "out")


def test_what_a_command_says_is_one_line_with_or_without_a_frame_and_colours() -> None:
    assert message_of(
        "\x1b[1;31merror:\x1b[0m no room \x1b[2m[capacity]\x1b[0m\n  what to do: x"
    ) == ("no room [capacity]")
    assert message_of("╭─ Error ─╮\n│ No such  │\n│ option.  │\n╰──────────╯") == (
        "Error No such option."
    )
    assert message_of("") == "no message"
