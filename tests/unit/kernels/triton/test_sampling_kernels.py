"""Sampling without a sort gives what the definition gives, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tests.support.triton_cpu")

from tests.unit.kernels.triton.test_device_sampling import arrays, check, on_device  # noqa: E402

from hearth.core.step import SamplingArrays  # noqa: E402
from hearth.kernels.reference.sampling import sample_rows, uniform  # noqa: E402
from hearth.kernels.triton import sampling_kernels  # noqa: E402


def plain(num_rows: int, seed: int) -> SamplingArrays:
    """Temperatures alone; some rows want no log-probability."""
    how = arrays(num_rows, seed)
    return replace(
        how,
        top_k=np.zeros(num_rows, np.int32),
        top_p=np.ones(num_rows, np.float32),
        min_p=np.zeros(num_rows, np.float32),
        num_logprobs=np.arange(num_rows, dtype=np.int32) % 2 - 1,
    )


def test_uniforms_are_those_of_the_definition_bit_by_bit() -> None:
    how = arrays(70)
    expected = [
        uniform(int(s), int(p), int(c)) for s, p, c in zip(how.seed, how.position, how.choice)
    ]
    assert sampling_kernels.uniforms(on_device(how)).tolist() == expected


@pytest.mark.parametrize("vocab_size", [1, 30, 64, 65, 500])
def test_tokens_are_those_of_the_definition(
    vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of 64, of which the last may be short; a third of the tokens is forbidden."""
    monkeypatch.setattr(sampling_kernels, "PART", 64)
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 3, (40, vocab_size)).astype(np.float32)
    logits[:, 1::3] = -np.inf
    if vocab_size > 128:
        logits[:20, 64:128] = -np.inf  # a whole part
    how = plain(40, vocab_size)
    actual = sampling_kernels.sample_without_sort(torch.from_numpy(logits), on_device(how))
    check(actual, sample_rows(logits, how))


def test_of_equal_logits_the_lowest_id_is_taken_across_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling_kernels, "PART", 16)
    logits = np.zeros((3, 50), np.float32)
    logits[0, [20, 40]] = 1.0
    logits[1, [47, 3]] = np.inf
    logits[2] = -np.inf
    how = replace(plain(3, 0), temperature=np.array([0, 1, 1], np.float32))
    how = replace(how, num_logprobs=np.full(3, -1, np.int32))
    actual = sampling_kernels.sample_without_sort(torch.from_numpy(logits), on_device(how))
    assert actual.tokens.tolist() == [20, 3, 0] == sample_rows(logits, how).tokens.tolist()


def test_kernels_compile_for_cards_without_spilling() -> None:
    """In a process of its own, since Triton's interpreter is chosen in this one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = Path(__file__).with_name("ahead_sampling.py")
    done = subprocess.run(
        [sys.executable, program, "75", "90"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 6
    assert all(kernel["spilled_bytes"] == 0 for kernel in kernels)
