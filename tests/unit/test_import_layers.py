"""What an import drags in, seen in `sys.modules`; import-linter reads the sources instead."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
TORCH_IS_ALLOWED_IN = (
    "hearth.kernels.reference",
    "hearth.kernels.triton",
    "hearth.models.automodel",
    "hearth.finetune",
    "hearth.quant",
)
HTTP_IS_ALLOWED_IN = ("hearth.serve", "hearth.cli")


def all_modules() -> list[str]:
    names = []
    for path in sorted((SOURCE / "hearth").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if not name.endswith("__main__")]


def outside(packages: tuple[str, ...]) -> list[str]:
    inside = tuple(f"{package}." for package in packages)
    return [name for name in all_modules() if not f"{name}.".startswith(inside)]


def loaded_by(modules: list[str], suspects: set[str]) -> list[str]:
    """Import the modules in a fresh interpreter; return which suspects came along."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted({suspects!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_walk_sees_the_packages() -> None:
    assert {"hearth", "hearth.core.errors", "hearth.kernels.reference"} <= set(all_modules())


def test_importing_hearth_alone_loads_nothing_else() -> None:
    others = {"numpy", "msgspec", "pydantic", "fastapi", "typer", "torch", "hearth.core"}
    assert loaded_by(["hearth"], others) == []


def test_core_needs_the_standard_library_only() -> None:
    core = [name for name in all_modules() if f"{name}.".startswith("hearth.core.")]
    third_party = {"numpy", "msgspec", "pydantic", "tokenizers", "jinja2", "psutil", "torch"}
    assert loaded_by(core, third_party) == []


def test_everything_that_serves_on_the_cpu_imports_neither_torch_nor_transformers() -> None:
    assert loaded_by(outside(TORCH_IS_ALLOWED_IN), {"torch", "transformers"}) == []


def test_nothing_below_serving_imports_the_http_stack() -> None:
    modules = outside((*TORCH_IS_ALLOWED_IN, *HTTP_IS_ALLOWED_IN))
    assert loaded_by(modules, {"fastapi", "starlette", "uvicorn"}) == []


@pytest.mark.parametrize("suspect", ["numpy", "hearth.core.errors"])
def test_the_probe_would_notice_an_import(suspect: str) -> None:
    assert loaded_by([suspect], {suspect}) == [suspect]
