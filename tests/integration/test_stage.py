"""A model that is served from a copy on a faster disk."""

from __future__ import annotations

from pathlib import Path

import httpx
from tests.integration.server import SMALL, Server, run_to_end

from hearth.cli.settings import BUILT_IN_DIR


def test_a_staged_model_is_served_from_its_copy_under_its_own_name(tmp_path: Path) -> None:
    stage = tmp_path / "ssd"
    with Server(tmp_path, str(BUILT_IN_DIR), *SMALL, "--stage", str(stage)) as server:
        (copy,) = stage.rglob("model.safetensors")
        names = [m["id"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]]
    assert copy.read_bytes() == (BUILT_IN_DIR / "model.safetensors").read_bytes()
    assert names == [BUILT_IN_DIR.name]


def test_a_directory_that_cannot_hold_the_copy_is_an_error_before_anything_starts(
    tmp_path: Path,
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("", encoding="utf-8")
    done = run_to_end(str(BUILT_IN_DIR), "--stage", str(blocked / "ssd"))
    assert done.returncode != 0
    assert str(blocked) in done.stderr
