"""Copies on a fast disk: whole or not there, within the budget, safe against others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.hub_server import FakeHub
from tests.unit.hub.hubs import Recorder, contents, do_pull, hugging, model_files

from hearth.core.errors import CapacityError, ChecksumError, HearthError, ModelNotFoundError
from hearth.core.quality import REPORT_FILE
from hearth.hub import stage as stage_module
from hearth.hub.observer import Silent
from hearth.hub.stage import Staged, stage, staged_bytes
from hearth.hub.warm import STEP_BYTES, warm_range

KIB = 1 << 10


def model(path: Path, size: int = 100 * KIB, fill: bytes = b"w") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(b"{}")
    (path / "model.safetensors").write_bytes(fill * size)
    (path / "pytorch_model.bin").write_bytes(b"not needed")
    return path


def used(staged: Staged, at_s: float) -> Path:
    """Releases a copy and sets when it was used; its path."""
    staged.release()
    lock = staged.path.parent / ".locks" / staged.path.name
    os.utime(lock, (at_s, at_s))
    return staged.path


def test_a_copy_holds_what_serving_needs(tmp_path: Path) -> None:
    recorder = Recorder()
    source = model(tmp_path / "slow" / "toy")
    staged = stage(source, tmp_path / "fast", None, recorder)
    staged.release()
    assert staged.is_new
    assert contents(staged.path) == {
        "config.json": b"{}",
        "model.safetensors": b"w" * 100 * KIB,
    }
    assert staged.path.name.startswith("toy-")
    assert recorder.done == recorder.total == 100 * KIB + 2
    again = stage(source, tmp_path / "fast", None, Silent())
    again.release()
    assert (again.path, again.is_new) == (staged.path, False)


def test_a_copy_has_its_source_s_quality_report_as_it_is_now(tmp_path: Path) -> None:
    """A report is measured after the weights were made, and measured again: no reason to copy."""
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path / "store", hugging(hub)).path
    plain = model(tmp_path / "slow" / "toy")
    for source in (pulled, plain):
        fast = tmp_path / "fast" / source.name
        first = used(stage(source, fast, None, Silent()), 1.0)
        assert not (first / REPORT_FILE).exists()
        for report in (b"{}", b'{"format": 1}'):
            (source / REPORT_FILE).write_bytes(report)
            again = stage(source, fast, None, Silent())
            again.release()
            assert (again.path, again.is_new) == (first, False)
            assert (again.path / REPORT_FILE).read_bytes() == report
        assert not list(first.glob(f".{REPORT_FILE}*"))
        # One that was measured of the copy is the copy's own.
        (source / REPORT_FILE).unlink()
        stage(source, fast, None, Silent()).release()
        assert (first / REPORT_FILE).read_bytes() == report
        # A new copy has it from the beginning.
        (source / REPORT_FILE).write_bytes(b"new")
        other = stage(source, tmp_path / "other" / source.name, None, Silent())
        other.release()
        assert (other.path / REPORT_FILE).read_bytes() == b"new"


def test_a_report_that_cannot_be_written_is_an_error_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(tmp_path / "slow" / "toy")
    stage(source, tmp_path / "fast", None, Silent()).release()
    (source / REPORT_FILE).write_bytes(b"{}")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CapacityError, match="cannot be written"):
        stage(source, tmp_path / "fast", None, Silent())
    assert not [p for p in (tmp_path / "fast").rglob("*") if REPORT_FILE in p.name]


def test_a_pulled_model_brings_its_manifest_along(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path / "slow", hugging(hub))
    staged = stage(pulled.path, tmp_path / "fast", None, Silent())
    staged.release()
    assert staged.path.name.startswith("test-org-toy-model-")
    assert contents(staged.path) == contents(pulled.path)
    assert (staged.path / ".hearth.json").read_bytes() == (
        pulled.path / ".hearth.json"
    ).read_bytes()


def test_links_to_files_are_read_through(tmp_path: Path) -> None:
    # A snapshot in huggingface_hub's cache is links to blobs.
    real = model(tmp_path / "blobs")
    links = tmp_path / "snapshot"
    links.mkdir()
    for name in ("config.json", "model.safetensors"):
        (links / name).symlink_to(real / name)
    staged = stage(links, tmp_path / "fast", None, Silent())
    staged.release()
    assert not (staged.path / "model.safetensors").is_symlink()
    assert contents(staged.path)["model.safetensors"] == b"w" * 100 * KIB


def test_a_model_that_changed_is_another_copy(tmp_path: Path) -> None:
    source = model(tmp_path / "toy")
    first = used(stage(source, tmp_path / "fast", None, Silent()), 1.0)
    (source / "model.safetensors").write_bytes(b"x" * 100 * KIB)
    second = used(stage(source, tmp_path / "fast", None, Silent()), 2.0)
    assert first != second
    assert contents(second)["model.safetensors"] == b"x" * 100 * KIB


def test_the_least_recently_used_copy_goes_first(tmp_path: Path) -> None:
    fast, budget = tmp_path / "fast", 250 * KIB
    a, b, c = (model(tmp_path / name, fill=name.encode()) for name in "abc")
    first = used(stage(a, fast, budget, Silent()), 1.0)
    second = used(stage(b, fast, budget, Silent()), 2.0)
    used(stage(a, fast, budget, Silent()), 3.0)
    third = used(stage(c, fast, budget, Silent()), 4.0)
    assert first.is_dir()
    assert third.is_dir()
    assert not second.exists()
    assert staged_bytes(fast) <= budget


def test_a_copy_in_use_stays(tmp_path: Path) -> None:
    fast, budget = tmp_path / "fast", 150 * KIB
    a, b = (model(tmp_path / name) for name in "ab")
    kept = stage(a, fast, budget, Silent())
    with pytest.raises(CapacityError, match="copies in use take 100 KiB of 150 KiB"):
        stage(b, fast, budget, Silent())
    assert contents(kept.path)
    kept.release()
    stage(b, fast, budget, Silent()).release()
    assert not kept.path.exists()


def test_a_model_beyond_the_budget_removes_nothing(tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    small = used(stage(model(tmp_path / "a"), fast, None, Silent()), 1.0)
    with pytest.raises(CapacityError, match=r"has 400 KiB, --stage-bytes is 300 KiB"):
        stage(model(tmp_path / "b", 400 * KIB), fast, 300 * KIB, Silent())
    assert small.is_dir()


def test_what_is_not_ours_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    (fast / "photos").mkdir(parents=True)
    (fast / "photos" / "cat").write_bytes(bytes(300 * KIB))
    stage(model(tmp_path / "a"), fast, 150 * KIB, Silent()).release()
    assert (fast / "photos" / "cat").is_file()


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    source = model(tmp_path / "a")
    staged = stage(source, tmp_path / "fast", None, Silent())
    staged.release()
    with (staged.path / "model.safetensors").open("r+b") as file:
        file.truncate(5)
    again = stage(source, tmp_path / "fast", None, Silent())
    again.release()
    assert again.is_new
    assert contents(again.path)["model.safetensors"] == b"w" * 100 * KIB


def test_a_source_that_differs_from_its_manifest_is_not_copied(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        pulled = do_pull(tmp_path / "slow", hugging(hub))
    weights = pulled.path / "model-00002-of-00002.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ChecksumError, match="pulled was"):
        stage(pulled.path, tmp_path / "fast", None, Silent())
    assert staged_bytes(tmp_path / "fast") == 0


def test_a_copy_that_differs_from_its_source_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(write: Callable[[memoryview], int | None], chunk: bytes) -> None:
        write(memoryview(bytes(len(chunk))))

    monkeypatch.setattr(stage_module, "_write_all", wrong)
    with pytest.raises(ChecksumError, match="its source"):
        stage(model(tmp_path / "a"), tmp_path / "fast", None, Silent())
    assert staged_bytes(tmp_path / "fast") == 0


def test_a_copy_can_be_staged_again(tmp_path: Path) -> None:
    first = stage(model(tmp_path / "a"), tmp_path / "fast", None, Silent())
    first.release()
    second = stage(first.path, tmp_path / "faster", None, Silent())
    second.release()
    assert contents(second.path) == contents(first.path)
    assert json.loads((second.path / ".stage.json").read_text())["source"] == str(first.path)


def test_a_source_that_changes_while_it_is_copied_is_not_taken(tmp_path: Path) -> None:
    source = model(tmp_path / "a")

    class Writer(Silent):
        def advance(self, num_bytes: int) -> None:
            (source / "model.safetensors").write_bytes(b"x" * 100 * KIB)

    with pytest.raises(HearthError, match="changed while it was copied"):
        stage(source, tmp_path / "fast", None, Writer())
    assert staged_bytes(tmp_path / "fast") == 0


@pytest.mark.parametrize("missing", ["config.json", ""])
def test_what_is_no_model_is_refused(tmp_path: Path, missing: str) -> None:
    source = model(tmp_path / "a")
    if missing:
        (source / missing).unlink()
    with pytest.raises(HearthError if not missing else ModelNotFoundError):
        stage(source, tmp_path / ("fast" if missing else "a/config.json/x"), None, Silent())


KILLED = """
import os, signal, sys
from pathlib import Path
from hearth.hub import stage as module
from hearth.hub.observer import Silent

class Killer(Silent):
    def advance(self, num_bytes):
        if num_bytes > 1000:
            os.kill(os.getpid(), signal.SIGKILL)

module.stage(Path(sys.argv[1]), Path(sys.argv[2]), None, Killer())
"""


def test_a_killed_copy_is_no_copy_and_is_made_again(tmp_path: Path) -> None:
    source, fast = model(tmp_path / "a"), tmp_path / "fast"
    command = [sys.executable, "-c", KILLED, str(source), str(fast)]
    assert subprocess.run(command, check=False).returncode == -9
    (left,) = (path for path in fast.iterdir() if path.name != ".locks")
    assert left.suffix == ".copying"
    # Another model finds the room that the dead one had reserved.
    used(stage(model(tmp_path / "b"), fast, 150 * KIB, Silent()), 1.0)
    assert not left.exists()
    staged = stage(source, fast, 150 * KIB, Silent())
    staged.release()
    assert contents(staged.path)["model.safetensors"] == b"w" * 100 * KIB


def test_of_two_at_once_one_copies_and_both_have_it(tmp_path: Path) -> None:
    source, fast = model(tmp_path / "a", 8 << 20), tmp_path / "fast"
    found: list[Staged] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(stage(source, fast, None, Silent()))
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for staged in found:
        staged.release()
    assert len({staged.path for staged in found}) == 1
    assert [staged.is_new for staged in found].count(True) == 1
    assert contents(found[0].path)["model.safetensors"] == b"w" * (8 << 20)


@pytest.mark.parametrize("size", [0, 1, 128 * KIB, 3 * 128 * KIB + 5])
def test_warming_asks_for_every_byte_of_a_range_in_small_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    asked: list[tuple[int, int]] = []
    advise = os.posix_fadvise

    def record(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        advise(fd, offset, length, advice)
        asked.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", record)
    with (model(tmp_path / "a", 7 + size) / "model.safetensors").open("rb") as file:
        warm_range(file.fileno(), 7, size)
    assert all(0 < length <= STEP_BYTES for _, length in asked)
    ends = [7, *(offset + length for offset, length in asked)]
    assert [offset for offset, _ in asked] == ends[:-1]
    assert ends[-1] == 7 + size


SEVERAL = """
import random, sys
from pathlib import Path
from hearth.core.errors import CapacityError
from hearth.hub.observer import Silent
from hearth.hub.stage import stage, staged_bytes

seed, fast, budget, *models = sys.argv[1:]
noise = random.Random(int(seed))
num_staged = 0
for _ in range(150):
    model = Path(noise.choice(models))
    try:
        staged = stage(model, Path(fast), int(budget), Silent())
    except CapacityError:  # the others' copies are in use
        continue
    num_staged += 1
    assert staged_bytes(Path(fast)) <= int(budget)
    for name in ("config.json", "model.safetensors"):
        assert (staged.path / name).read_bytes() == (model / name).read_bytes()
    staged.release()
print(num_staged)
"""


def test_processes_share_a_budget_and_find_their_copies_whole(tmp_path: Path) -> None:
    budget = 250 * KIB
    models = [model(tmp_path / name, fill=name.encode()) for name in "abcd"]
    arguments = [str(tmp_path / "fast"), str(budget), *map(str, models)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, str(seed), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum(int(out) for out, _ in outputs) > 0
    assert staged_bytes(tmp_path / "fast") <= budget
