"""A weight file that changed, in whatever way, is not taken for the one it was."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.unit.models.checkpoints import write_safetensors

from hearth.core.errors import WeightsError
from hearth.models.weight_identity import SETTLED_S, identify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"w": np.arange(64, dtype=np.float32)})
    return file


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """As `touch -r` and `rsync --times` do."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


def replace_by_another(path: Path) -> None:
    other = path.with_suffix(".new")
    shutil.copyfile(path, other)
    edit_in_place(other)
    other.replace(path)


def edit_through_a_mapping(path: Path) -> None:
    array = np.memmap(path, np.uint8, "r+")
    array[-1] ^= 1
    array.flush()


CHANGES = [edit_in_place, replace_by_another, edit_through_a_mapping]


def test_a_file_that_stays_as_it_was_keeps_its_identity_where_it_is_moved(path: Path) -> None:
    before = identify([path])
    assert identify([path]) == before
    directory = path.parent / "elsewhere"
    directory.mkdir()
    path.rename(directory / path.name)
    moved = identify([directory / path.name])
    assert moved[0].inode == before[0].inode
    assert moved[0].header_hash == before[0].header_hash


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_also_when_size_header_and_time_of_modification_stay(
    path: Path, change: Callable[[Path], None]
) -> None:
    before = identify([path])
    keep_times(path, lambda: change(path))
    after = identify([path])
    assert after != before
    assert after[0].num_bytes == before[0].num_bytes
    assert after[0].modified_ns == before[0].modified_ns
    assert after[0].header_hash == before[0].header_hash


def test_another_header_is_seen(path: Path) -> None:
    before = identify([path])
    path.write_bytes(path.read_bytes().replace(b'"w"', b'"v"'))
    assert identify([path])[0].header_hash != before[0].header_hash


def test_a_file_just_written_is_given_time_to_be_told_from_its_next_version(path: Path) -> None:
    edit_in_place(path)
    changed_ns = identify([path])[0].changed_ns
    assert time.time_ns() - changed_ns >= SETTLED_S * 1e9 * 0.9


def test_a_file_that_is_gone_is_an_error_of_the_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        identify([tmp_path / "model.safetensors"])
