"""The journal: what is in it is on disk, and what a crash has left of it is read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hearth.core.errors import JournalError
from hearth.host.tune.journal import open_journal, read_entries
from hearth.host.tune.places import Change

SWAPPINESS = Change("swappiness", "value", "proc/sys/vm/swappiness", "60", "10")
OTHER = Change("thp", "choice", "sys/kernel/mm/transparent_hugepage/enabled", "never", "madvise")


def fill(path: Path) -> None:
    with open_journal(path, clock=lambda: "now") as journal:
        journal.mark(journal.begin(SWAPPINESS), "done")
        journal.begin(OTHER)


def test_entries_are_read_back_with_how_far_they_came(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tune.journal"
    assert read_entries(path) == []
    fill(path)
    entries = read_entries(path)
    assert [(e.id, e.change, e.state) for e in entries] == [
        (1, SWAPPINESS, "done"),
        (2, OTHER, "begun"),
    ]
    with open_journal(path) as journal:
        journal.mark(2, "undone")
        assert [entry.id for entry in journal.pending()] == [1]
        assert journal.begin(OTHER) == 3


def test_a_line_is_one_json_object_with_a_version(tmp_path: Path) -> None:
    fill(tmp_path / "j")
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert lines[0] == {
        "v": 1,
        "id": 1,
        "at": "now",
        "action": "swappiness",
        "kind": "value",
        "path": "proc/sys/vm/swappiness",
        "before": "60",
        "after": "10",
    }
    assert lines[1] == {"v": 1, "id": 1, "at": "now", "state": "done"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60).filter(lambda data: b"\n" not in data))
def test_a_last_line_that_a_crash_cut_off_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    fill(path)
    complete = path.read_bytes()
    path.write_bytes(complete + tail)
    assert len(read_entries(path)) == 2
    with open_journal(path) as journal:
        assert path.read_bytes() == complete
        journal.mark(2, "done")
    assert [entry.state for entry in read_entries(path)] == ["done", "done"]


@pytest.mark.parametrize("num_bytes", [1, 20, 80, 120, 150])
def test_wherever_the_end_is_cut_off_the_rest_is_read(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "j"
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-num_bytes])
    with open_journal(path) as journal:
        assert [entry.id for entry in journal.pending()] == [1]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "{}",
        '{"v":2,"id":9}',
        '{"v":1,"id":9,"state":"done"}',
        '{"v":1,"id":1,"state":"lost"}',
        (
            '{"v":1,"id":1,"action":"a","kind":"value","path":"proc/sys/vm/swappiness","before":"1",'
            '"after":"2"}'
        ),
        (
            '{"v":1,"id":9,"action":"a","kind":"value","path":"proc/sys/vm/swappiness","before":1,'
            '"after":"2"}'
        ),
        '{"v":1,"id":9,"action":"a","kind":"file","path":"etc/passwd","before":"x","after":"y"}',
        (
            '{"v":1,"id":9,"action":"a","kind":"value","path":"sys/block/../queue/read_ahead_kb",'
            '"before":"x","after":"y"}'
        ),
        '{"v":1,"id":9,"action":"a","kind":[],"path":"etc/passwd","before":"x","after":"y"}',
    ],
)
def test_a_damaged_or_made_up_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    fill(path)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]) + "\n")
    with pytest.raises(JournalError, match="line 2 of the journal"):
        read_entries(path)
    with pytest.raises(JournalError, match="line 2"), open_journal(path):
        pass
    assert len(read_entries(path, skip_damaged=True)) == 2


def test_two_at_once_are_excluded(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with (
        open_journal(path),
        pytest.raises(JournalError, match="another hearth tune is at work"),
        open_journal(path),
    ):
        pass
    with open_journal(path):
        pass


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    fill(path)
    whole = path.read_bytes()
    real = os.write

    def write(target: int, data: bytes) -> int:
        if len(data) > 10:
            return real(target, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            # The rest of the line is written ten bytes at a time, until there is no space.
            with pytest.raises(JournalError, match="No space left"):
                journal.begin(SWAPPINESS)
        assert path.read_bytes() == whole
        assert len(journal.pending()) == 2
        assert journal.begin(SWAPPINESS) == 3


def test_a_journal_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(JournalError, match="cannot be written") as caught,
        open_journal(tmp_path / "file" / "j"),
    ):
        pass
    assert "--journal" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero", "/"])
def test_what_is_no_file_is_no_journal_and_gets_no_lock(name: str) -> None:
    with pytest.raises(JournalError, match="not a plain file"):
        read_entries(Path(name))
    with pytest.raises(JournalError, match="not a plain file"), open_journal(Path(name)):
        pass
    assert not Path(f"{name}.lock").exists()
