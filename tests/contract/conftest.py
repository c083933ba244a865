"""Models of the parity suite, built once a session, and the executors that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.support.executors import DEVICE_NAME, NAMES, Setup, build_executor
from tests.support.hf_models import CASES, Expected, ModelCase, expect

from hearth.core.program import StepProgram
from hearth.core.step import Executor
from hearth.models.loader import LoadedSpec, load_model_spec

Build = Callable[..., Executor]
ExpectedOf = Callable[[ModelCase], Expected]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """The models are tiny: on a busy machine, waiting for a second thread takes 50 times longer."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def expected_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelCase], Expected]:
    """What transformers answers for a case; computed when first asked for."""
    known: dict[str, Expected] = {}

    def get(case: ModelCase) -> Expected:
        if case.name not in known:
            known[case.name] = expect(case, tmp_path_factory.mktemp(case.name))
        return known[case.name]

    return get


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def expected(
    request: pytest.FixtureRequest, expected_of: Callable[[ModelCase], Expected]
) -> Expected:
    """Each of the cases."""
    return expected_of(request.param)


@pytest.fixture
def loaded(expected: Expected) -> LoadedSpec:
    """The case's checkpoint through our loader, in float32."""
    return load_model_spec(expected.path)


# The GPU's executor in plain torch is slow: a few of these cases stand in tests/unit as well.
@pytest.fixture(params=(*NAMES, pytest.param(DEVICE_NAME, marks=pytest.mark.long)))
def executor_name(request: pytest.FixtureRequest) -> str:
    """Each of the executors."""
    name: str = request.param
    return name


@pytest.fixture
def build(executor_name: str) -> Iterator[Build]:
    """Builds executors of the name under test and closes them at the end."""
    built: list[Executor] = []

    def make(setup: Setup, program: StepProgram | None = None) -> Executor:
        built.append(build_executor(executor_name, setup, program))
        return built[-1]

    yield make
    for executor in built:
        executor.close()
