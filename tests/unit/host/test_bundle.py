"""The support archive: whole or not at all, over no file."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from hearth.core.errors import CapacityError, ConfigError
from hearth.host import bundle
from hearth.host.bundle import write_bundle

FILES = {"facts.json": "{}\n", "README.txt": "é\n"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_archive_holds_the_files_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "support.tar.gz"
    write_bundle(path, FILES)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["hearth-doctor/facts.json", "hearth-doctor/README.txt"]
        member = archive.extractfile("hearth-doctor/README.txt")
        assert member is not None
        assert member.read().decode() == "é\n"
        assert {(m.uname, m.uid, m.mtime) for m in archive.getmembers()} == {("", 0, 0)}
    assert path.stat().st_mode & 0o077 == 0
    assert names(tmp_path) == ["support.tar.gz"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "support.tar.gz"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not overwritten"):
        write_bundle(path, FILES)
    assert path.read_text() == "precious"
    (tmp_path / "link.tar.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not overwritten"):
        write_bundle(tmp_path / "link.tar.gz", FILES)


def test_a_name_that_another_process_takes_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "support.tar.gz"
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    path.write_text("theirs")
    with pytest.raises(ConfigError, match="not overwritten"):
        write_bundle(path, FILES)
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["support.tar.gz"]


def test_a_file_system_without_links_gets_the_archive_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_bundle(tmp_path / "support.tgz", FILES)
    assert names(tmp_path) == ["support.tgz"]
    assert tarfile.is_tarfile(tmp_path / "support.tgz")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_packed", full)
    with pytest.raises(CapacityError, match="No space left"):
        write_bundle(tmp_path / "support.tar.gz", FILES)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["support.zip", "no/such/support.tar.gz", "x" * 300 + ".tar.gz"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--bundle"):
        write_bundle(tmp_path / name, FILES)
