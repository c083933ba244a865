"""`hearth serve --quantize` on the built-in model, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.server import SMALL, Server, run_to_end


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_built_in_model_still_answers(scheme: str, tmp_path: Path) -> None:
    with Server(tmp_path, "--quantize", scheme, *SMALL) as server:
        assert f"quantize: {scheme} (--quantize; of the matrices: {scheme}" in server.stdout
        assert f"parameters as {'int4 and int8' if scheme == 'int4' else 'int8'}" in server.stdout
        answer = server.ask("What is hearth?")
        assert "server" in answer
        assert server.ask("What is hearth?") == answer


def test_it_is_refused_where_other_kernels_run_the_model() -> None:
    done = run_to_end("--quantize", "int4", "--executor", "reference")
    assert done.returncode == 2
    assert "--quantize int4 needs the C++ kernels" in done.stderr
    assert "leave --quantize out" in done.stderr
