"""Files that earlier runs have left are removed; what is not ours, and what is no file, stays."""

from __future__ import annotations

from pathlib import Path

from hearth.quant.checkpoint import drop_leftovers


def test_a_file_that_is_no_checkpoint_stays_and_ends_nothing(tmp_path: Path) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "short.safetensors").write_bytes(b"\x01")
    drop_leftovers(tmp_path, ())
    assert pointer.exists()
    assert (tmp_path / "short.safetensors").exists()
