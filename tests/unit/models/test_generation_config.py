"""Stop tokens and default sampling come from the model's files; nothing is dropped silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.models.checkpoints import LLAMA, write_config

from hearth.core.errors import ModelError
from hearth.models.generation_config import GenerationDefaults
from hearth.models.loader import load_model_spec


def read(directory: Path, generation: object = None, **config_changes: Any) -> GenerationDefaults:
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return load_model_spec(write_config(directory, LLAMA, **config_changes)).generation


def test_without_files_nothing_is_set(tmp_path: Path) -> None:
    assert read(tmp_path) == GenerationDefaults()


@pytest.mark.parametrize(("eos", "expected"), [(2, (2,)), ([3, 1, 3], (3, 1)), (None, ())])
def test_stop_tokens_are_a_number_or_a_list(tmp_path: Path, eos: Any, expected: Any) -> None:
    assert read(tmp_path, {"eos_token_id": eos}).eos_token_ids == expected
    (tmp_path / "generation_config.json").unlink()
    assert read(tmp_path, eos_token_id=eos).eos_token_ids == expected


def test_generation_config_goes_before_config(tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": [4, 5]}, eos_token_id=2).eos_token_ids == (4, 5)


def test_config_serves_where_generation_config_names_none(tmp_path: Path) -> None:
    assert read(tmp_path, {"temperature": 0.5}, eos_token_id=2).eos_token_ids == (2,)


def test_a_stop_token_outside_the_vocabulary_is_ignored_with_a_warning(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"eos_token_id": [2, 10, -1]})
    assert defaults.eos_token_ids == (2,)
    assert defaults.warnings == (
        "generation_config.json: eos_token_id [-1, 10] outside the vocabulary (0 to 9) is ignored",
    )


def test_sampling_defaults_are_read(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5})
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.6, 0.9, 5)
    assert defaults.min_p is None
    assert defaults.reason == "generation_config.json"


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"do_sample": False, "temperature": 0.6, "top_p": 0.9})
    assert (defaults.temperature, defaults.top_p) == (0.0, None)
    assert defaults.reason == "generation_config.json: do_sample is false"


@pytest.mark.parametrize("top_k", [-1, 0, 10, 50])
def test_a_top_k_that_keeps_everything_is_off(tmp_path: Path, top_k: int) -> None:
    assert read(tmp_path, {"top_k": top_k}).top_k == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; permitted: a number from 0 to 100"),
        ({"top_p": 0}, "top_p is 0; permitted: a number above 0 to 1"),
        ({"top_p": 1.5}, "top_p is 1.5; permitted: a number above 0 to 1"),
        ({"top_k": 1.5}, "top_k is 1.5; permitted: an integer from 0 (off)"),
        ({"top_k": -3}, "top_k is -3; permitted: an integer from 0 (off)"),
        ({"min_p": "a"}, 'min_p is "a"; permitted: a number from 0 to 1'),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; permitted: a number above 0 to 100"),
        ({"do_sample": 1}, "do_sample is 1; permitted: true, false"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, values)
    assert str(caught.value) == f"generation_config.json: {message}"


def test_what_is_not_applied_is_warned_about(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"no_repeat_ngram_size": 3, "num_beams": 1, "min_new_tokens": None})
    assert defaults.warnings == (
        "generation_config.json: no_repeat_ngram_size is 3, which is not applied",
    )


@pytest.mark.parametrize("do_sample", [True, False])
def test_penalty_and_length_count_for_greedy_models_too(tmp_path: Path, do_sample: bool) -> None:
    values = {"do_sample": do_sample, "repetition_penalty": 1.05, "max_new_tokens": 512}
    defaults = read(tmp_path, values)
    assert (defaults.repetition_penalty, defaults.max_new_tokens) == (1.05, 512)
    assert defaults.warnings == ()


def test_a_broken_generation_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        read(tmp_path)
