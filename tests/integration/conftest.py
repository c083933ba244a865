"""One server on the built-in model for all tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.server import SMALL, Server

from hearth.cli.settings import BUILT_IN_DIR


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (BUILT_IN_DIR / "model.safetensors").is_file():
        pytest.skip("the built-in model is not there; make demo-model trains it")
    with Server(tmp_path_factory.mktemp("server"), *SMALL) as found:
        yield found
        assert found.stop() == 0
        assert "Traceback" not in found.stderr
