"""Neither process of a CPU server loads torch or transformers, and the engine comes first.

Told by the interpreter itself: with `-X importtime` each process writes the modules that it
imports; and by the kernel, which knows the libraries that are mapped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.integration.server import SMALL, Server

FORBIDDEN = ("torch", "transformers", "safetensors", "scipy", "pandas")


def imported(importtime: str) -> list[str]:
    """Modules in the order in which their import ended."""
    return re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s*([\w.]+)$", importtime, re.MULTILINE)


def test_no_process_loads_torch_and_the_engine_starts_before_the_http_stack(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, *SMALL, python=("-X", "importtime")) as server:
        assert server.ask("What is hearth?")
        modules = imported(server.stderr)
        assert {"fastapi", "hearth.engine.spawn"} <= set(modules)
        roots = {name.partition(".")[0] for name in modules}
        assert not roots & set(FORBIDDEN)
        assert modules.index("hearth.engine.spawn") < modules.index("fastapi")
        for pid in (server.popen.pid, server.engine_pid):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
            assert "libtorch" not in maps
            assert "/torch/" not in maps
        # One BLAS thread and one of ours each: nothing was started behind our back.
        assert "OPENBLAS_NUM_THREADS=1" in _environment(server.engine_pid)


def _environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")


def test_what_the_engine_imports_is_free_of_torch_and_of_the_http_stack(tmp_path: Path) -> None:
    code = (
        "import sys; from hearth.core.config import EngineConfig, ModelConfig;"
        "from hearth.cli.settings import BUILT_IN_DIR;"
        "import hearth.engine.process; from hearth.engine.startup import start;"
        "started = start(EngineConfig(ModelConfig(str(BUILT_IN_DIR))), lambda *_: None);"
        "started.engine.close();"
        "print(sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(re.findall(r"'([^']+)'", result.stdout))
    assert "numpy" in loaded
    assert not loaded & {*FORBIDDEN, "fastapi", "uvicorn", "pydantic", "tokenizers", "jinja2"}
