"""The packaging keeps its promises: one version, exact pins, every dependency accounted for."""

import importlib.metadata
import importlib.resources
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hearth

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!]+$")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return canonical(match.group())


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert [row for row in rows if not PIN.match(row)] == []
    return {canonical(name): version for name, version in (row.split("==") for row in rows)}


def declared(project: dict[str, Any]) -> set[str]:
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {requirement_name(item) for group in groups for item in group} - {"hearth"}


def test_the_installed_version_is_the_version_in_the_package() -> None:
    assert importlib.metadata.version("hearth") == hearth.__version__


def test_the_changelog_speaks_of_the_current_version() -> None:
    assert f"## {hearth.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_says_that_it_is_typed() -> None:
    assert (importlib.resources.files("hearth") / "py.typed").is_file()


def test_every_declared_dependency_has_an_exact_pin(
    project: dict[str, Any], pins: dict[str, str]
) -> None:
    assert declared(project) - set(pins) == set()


def test_every_installed_dependency_of_a_pinned_package_is_pinned_too(
    pins: dict[str, str],
) -> None:
    unpinned = set()
    for name in pins:
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # CUDA's libraries, where torch is built for the CPU
        plain = {requirement_name(item) for item in requirements if ";" not in item}
        unpinned |= plain - set(pins)
    assert unpinned == set()


def test_every_declared_dependency_is_explained(project: dict[str, Any]) -> None:
    text = canonical((ROOT / "docs" / "dependencies.md").read_text())
    assert {name for name in declared(project) if f"`{name}`" not in text} == set()


def test_torch_is_no_runtime_dependency(project: dict[str, Any]) -> None:
    names = {requirement_name(item) for item in project["dependencies"]}
    assert names & {"torch", "transformers", "safetensors"} == set()


def test_swagger_ui_is_served_from_files_that_the_dependency_carries() -> None:
    # FastAPI's own page loads the script from a content network; a machine may have no network.
    resources = importlib.resources.files("fastapi_swagger.resources")
    script = (resources / "swagger-ui-bundle.js").read_text(encoding="utf-8")
    assert re.search(r'PACKAGE_VERSION:"5\.\d+', script), "OpenAPI 3.1 needs Swagger UI 5"
    assert (resources / "swagger-ui.css").is_file()
