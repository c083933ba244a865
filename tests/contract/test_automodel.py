"""Models without a family file: the whole engine answers as transformers' `generate` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.comparison import LOGITS_TOLERANCE
from tests.support.fallback_models import CASES, GPT2, LENGTHS, OLMO2, expect_fallback, start_engine
from tests.support.hf_models import CASES as FAMILY_CASES
from tests.support.hf_models import NUM_NEW_TOKENS, Expected, ModelCase
from tests.support.toy_engine import Driver

from hearth.core.errors import ModelError, WeightsError
from hearth.core.request import Request, SamplingParams
from hearth.models.automodel.attention import PagedSite
from hearth.models.automodel.interface import AttentionCall

MIXED = tuple(range(len(LENGTHS)))
LONG = pytest.mark.long

ExpectedOf = Callable[[ModelCase], Expected]


@pytest.fixture(scope="module")
def fallback_of(tmp_path_factory: pytest.TempPathFactory) -> ExpectedOf:
    """What transformers answers for a case; computed when first asked for."""
    known: dict[str, Expected] = {}

    def get(case: ModelCase) -> Expected:
        if case.name not in known:
            known[case.name] = expect_fallback(case, tmp_path_factory.mktemp(case.name))
        return known[case.name]

    return get


def answers(path: Path, expected: Expected, which: tuple[int, ...], **settings: Any) -> Driver:
    """Runs the greedy prompts at once, and again where a prefix cache may answer."""
    started = start_engine(path, **settings)
    assert started.ready.executor.name == "automodel"
    driver = Driver(started.engine)
    for turn in range(2 if settings.get("caching", True) else 1):
        for index in which:
            sampling = SamplingParams(temperature=0)
            prompt = expected.prompts[index]
            driver.submit(Request(f"{turn}/{index}", prompt, NUM_NEW_TOKENS, sampling))
        driver.run()
        for index in which:
            found = tuple(driver.outcomes[f"{turn}/{index}"].tokens)
            assert found == expected.greedy[index], (turn, index)
    started.engine.close()
    return driver


@pytest.mark.parametrize(
    "case",
    [*CASES[:2], *(pytest.param(case, marks=LONG) for case in CASES[2:])],
    ids=lambda case: case.name,
)
def test_the_models_are_fit_for_the_comparison(case: ModelCase, fallback_of: ExpectedOf) -> None:
    expected = fallback_of(case)
    assert min(len(set(expected.greedy[i])) for i in MIXED) >= 15
    assert expected.smallest_gap() >= 2 * LOGITS_TOLERANCE


@pytest.mark.parametrize("case", [OLMO2, GPT2], ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("which", "budget", "caching"),
    [
        pytest.param(MIXED, 7, True, id="mixed-7-cache"),
        pytest.param(MIXED[:1], 64, False, id="alone-64-no-cache"),
        *(
            pytest.param(which, budget, caching, id=f"{len(which)}-{budget}-{caching}", marks=LONG)
            for which in (MIXED[:1], MIXED)
            for budget in (7, 64)
            for caching in (True, False)
        ),
    ],
)
def test_greedy_tokens_are_those_of_generate(
    case: ModelCase,
    fallback_of: ExpectedOf,
    which: tuple[int, ...],
    budget: int,
    caching: bool,
) -> None:
    expected = fallback_of(case)
    driver = answers(expected.path, expected, which, budget=budget, caching=caching)
    assert (driver.engine.stats().num_prefix_hit_tokens > 0) == caching


@pytest.mark.long
@pytest.mark.parametrize("case", CASES[2:], ids=lambda case: case.name)
def test_other_architectures_too(case: ModelCase, fallback_of: ExpectedOf) -> None:
    expected = fallback_of(case)
    answers(expected.path, expected, MIXED, budget=16)


@pytest.mark.parametrize("case", [OLMO2, GPT2], ids=lambda case: case.name)
def test_tokens_stay_the_same_after_preemption(case: ModelCase, fallback_of: ExpectedOf) -> None:
    expected = fallback_of(case)
    # 2 layers · keys and values · heads · 16 wide · 16 tokens · 4 bytes a block: 14 blocks, where
    # the five sequences need 27.
    num_heads = case.sizes.get("num_key_value_heads", 4)
    memory_bytes = 14 * 2 * 2 * num_heads * 16 * 16 * 4
    driver = answers(expected.path, expected, MIXED, memory_bytes=memory_bytes, max_model_len=160)
    assert driver.engine.stats().num_preemptions > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [c for c in FAMILY_CASES if c.family in {"mistral", "gemma2", "gemma3", "glm4"}],
    ids=lambda case: case.name,
)
def test_families_can_be_run_that_way_when_asked(case: ModelCase, expected_of: ExpectedOf) -> None:
    """Windows, soft caps and alternating layers, with the reference that the kernels have."""
    expected = expected_of(case)
    answers(expected.path, expected, (0, 15), budget=16, executor="automodel")


def test_broken_weights_are_an_error_and_no_random_numbers(
    fallback_of: ExpectedOf, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(fallback_of(OLMO2).path, path)
    file = path / "model.safetensors"
    tensors = load_file(file)
    missing = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != missing}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=missing):
        start_engine(path)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(WeightsError):
        start_engine(path)
    file.unlink()
    with pytest.raises(WeightsError, match="safetensors"):
        start_engine(path)
    start_engine(path, load_format="dummy").engine.close()


def test_sampling_with_a_seed_is_the_same_alone_and_in_company(fallback_of: ExpectedOf) -> None:
    expected = fallback_of(OLMO2)
    sampling = SamplingParams(
        temperature=0.8, top_p=0.9, seed=7, repetition_penalty=1.2, num_logprobs=2
    )
    found: list[list[int]] = []
    for company in (0, 3):
        driver = Driver(start_engine(expected.path, budget=32).engine)
        driver.submit(Request("one", expected.prompts[0], 32, sampling))
        for index in range(company):
            driver.submit(Request(f"other{index}", expected.prompts[2 + index], 32, sampling))
        driver.run()
        found.append(driver.outcomes["one"].tokens)
    assert found[0] == found[1]
    assert len(found[0]) == 32


def test_windowed_groups_give_blocks_back_and_the_plan_is_smaller(
    fallback_of: ExpectedOf,
) -> None:
    """--window on a model of transformers: each layer keeps no more than the window needs."""
    expected = fallback_of(OLMO2)
    started = start_engine(expected.path, budget=16, window=24, caching=False)
    driver = Driver(started.engine)
    driver.submit(Request("long", expected.prompts[4], 64, SamplingParams(temperature=0)))
    most = 0

    def watch(_: int) -> None:
        nonlocal most
        (group,) = started.engine.scheduler.blocks._groups
        most = max(most, sum(refs > 0 for refs in group.refs))

    driver.run(before_step=watch)
    assert 0 < most <= 4
    assert driver.outcomes["long"].tokens[:1] != []
    assert any(choice.name == "window" for choice in started.ready.resolved.choices)


class _Wrong:
    """Attention with one mistake."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., Any]) -> None:
        right = PagedSite.attend

        def attend(site: PagedSite, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
            mixed: torch.Tensor = mistake(lambda c: right(site, module, c), call)
            return mixed

        monkeypatch.setattr(PagedSite, "attend", attend)


def _scaled(right: Callable[..., Any], call: AttentionCall) -> Any:
    return right(replace(call, scale=call.scale * 1.05))


def _shifted(right: Callable[..., Any], call: AttentionCall) -> Any:
    return right(call).roll(1, dims=2)


def _forgetful(right: Callable[..., Any], call: AttentionCall) -> Any:
    return right(replace(call, key=call.key * 0.98))


@pytest.mark.parametrize("mistake", [_scaled, _shifted, _forgetful], ids=lambda m: m.__name__)
def test_a_mistake_in_attention_is_found_at_the_start(
    fallback_of: ExpectedOf, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., Any]
) -> None:
    _Wrong(monkeypatch, mistake)
    with pytest.raises(ModelError, match="logits differ by"):
        start_engine(fallback_of(GPT2).path)


def test_a_model_that_mixes_tokens_outside_of_attention_is_found_at_the_start(
    fallback_of: ExpectedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a quirk of the model's own code would: a layer that looks at the row before."""
    from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP

    plain: Any = Olmo2MLP.forward

    def peeking(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = plain(mlp, x)
        return y + 0.1 * torch.nn.functional.pad(y, (0, 0, 1, 0))[:, :-1]

    monkeypatch.setattr(Olmo2MLP, "forward", peeking)
    with pytest.raises(ModelError, match="mixes tokens"):
        start_engine(fallback_of(OLMO2).path)
