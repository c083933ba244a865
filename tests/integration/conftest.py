"""Servers on the built-in model for all tests that do not harm them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.server import ENDLESS, SMALL, Server, endless_model
from tools.demo_model import TEXT_MODEL_DIR

from hearth.cli.settings import BUILT_IN_DIR


@pytest.fixture(scope="session")
def built_in() -> Path:
    return BUILT_IN_DIR


@pytest.fixture(scope="session")
def server(built_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), *SMALL) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.stderr


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text model with a context that no answer fills in a test's time."""
    return endless_model(TEXT_MODEL_DIR, tmp_path_factory.mktemp("endless"))


@pytest.fixture(scope="session")
def endless_server(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answers end when their client leaves; four run, two more may wait."""
    flags = [*ENDLESS, "--max-queued-requests", "2"]
    with Server(tmp_path_factory.mktemp("endless_server"), str(endless), *flags) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.stderr
