"""`hearth serve ORG/NAME`: a pulled model, under its own name; a directory of that name wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.hub_server import REPO, FakeHub
from tests.unit.hub.hubs import do_pull, hugging, model_files

from hearth.cli.settings import find_model, served_names
from hearth.core.errors import ModelNotFoundError


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEARTH_MODELS_DIR", str(tmp_path / "store"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with FakeHub(model_files()) as hub:
        return do_pull(tmp_path / "store", hugging(hub)).path


@pytest.mark.parametrize("name", [REPO, f"{REPO}@main", f"{REPO}@01234567"])
def test_a_pulled_model_is_served_under_its_name(pulled: Path, name: str) -> None:
    found = find_model(name)
    assert found == pulled
    assert served_names(name, found, None) == (REPO,)
    assert served_names(name, found, ["small"]) == ("small",)


def test_a_directory_wins_over_a_name(pulled: Path) -> None:
    here = Path(REPO)
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    assert find_model(REPO) == here
    assert served_names(REPO, here, None) == ("toy-model",)


@pytest.mark.parametrize("name", ["test-org/other", f"{REPO}@v9", "toy"])
def test_what_was_not_pulled_is_said_with_what_to_do(pulled: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"there is no directory {name}") as error:
        find_model(name)
    assert error.value.hint == f"hearth pull {name}"


def test_a_pull_that_is_not_complete_is_not_served(pulled: Path) -> None:
    (pulled / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match="or not all of it"):
        find_model(REPO)


@pytest.mark.parametrize("name", ["/no/such", "a/b/c", "../x", "x y"])
def test_what_is_no_name_is_a_directory_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no directory"):
        find_model(name)
