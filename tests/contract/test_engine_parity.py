"""The whole engine answers as transformers does: scheduler, paging, prefix cache and kernels."""

from __future__ import annotations

import pytest
from tests.contract.conftest import Build
from tests.support.engines import EngineSizes, build_engine
from tests.support.executors import Setup
from tests.support.hf_models import NUM_NEW_TOKENS, Expected
from tests.support.toy_engine import Driver

from hearth.core.request import Request, SamplingParams
from hearth.models.loader import LoadedSpec


def answers(
    build: Build, loaded: LoadedSpec, sizes: EngineSizes, prompts: tuple[tuple[int, ...], ...]
) -> tuple[list[tuple[int, ...]], Driver]:
    """Greedy answers to all prompts at once, twice: the second time the prefix cache is warm."""
    setup = Setup(loaded, sizes.budget, sizes.block_size, sizes.num_blocks)
    engine = build_engine(build(setup), sizes)
    driver = Driver(engine)
    found: list[tuple[int, ...]] = []
    for turn in range(2):
        for index, prompt in enumerate(prompts):
            sampling = SamplingParams(temperature=0)
            driver.submit(Request(f"{turn}/{index}", prompt, NUM_NEW_TOKENS, sampling))
        driver.run()
        found = [tuple(driver.outcomes[f"{turn}/{i}"].tokens) for i in range(len(prompts))]
        if turn == 0:
            first = found
    assert first == found
    return found, driver


# The slow executor goes through the engine once, with everything that can happen to it.
@pytest.mark.parametrize("executor_name", ["cpu"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("budget", [7, 64, 512])
@pytest.mark.parametrize("batch", [1, 16])
def test_the_engine_gives_the_greedy_tokens_of_transformers(
    expected: Expected,
    loaded: LoadedSpec,
    build: Build,
    batch: int,
    budget: int,
    prefix_caching: bool,
) -> None:
    sizes = EngineSizes(budget, num_blocks=512, prefix_caching=prefix_caching)
    found, driver = answers(build, loaded, sizes, expected.prompts[:batch])
    assert found == list(expected.greedy[:batch])
    hits = driver.engine.stats().num_prefix_hit_tokens
    assert (hits > 0) == prefix_caching


def test_tokens_stay_those_of_transformers_after_preemption(
    expected: Expected, loaded: LoadedSpec, build: Build
) -> None:
    sizes = EngineSizes(64, num_blocks=32, max_model_len=256)
    found, driver = answers(build, loaded, sizes, expected.prompts)
    assert found == list(expected.greedy)
    assert driver.engine.stats().num_preemptions > 0
