"""Cores that other servers have taken are seen as long as those live, and nothing stops a start."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.unit.host.facts.trees import topology, write

from hearth.host.core_lease import OtherServers, open_leases

CHILD = """
import sys, time
from hearth.host.core_lease import open_leases
with open_leases() as leases:
    lease = leases.claim(map(int, sys.argv[1:]))
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A runtime directory as systemd makes one."""
    path = tmp_path / "run"
    path.mkdir(0o700)
    return path


def others(base: Path, fallback: Path = Path("/nowhere")) -> OtherServers:
    with open_leases({"XDG_RUNTIME_DIR": str(base)}, fallback) as leases:
        return leases.others()


@contextmanager
def server(base: Path, *cpus: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, *map(str, cpus)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(base)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "taken\n"
        yield child
        child.kill()


def test_cores_of_a_server_are_taken_until_it_ends_however_it_does(base: Path) -> None:
    with server(base, 0, 1, 5) as first, server(base, 1) as second:
        both = tuple(sorted((str(first.pid), str(second.pid))))  # in the order of file names
        assert others(base).pids == {
            0: (first.pid,),
            1: tuple(int(pid) for pid in both),
            5: (first.pid,),
        }
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert others(base) == OtherServers({1: (second.pid,)})
        assert len(list((base / "hearth-cores").glob("*.cpus"))) == 1  # the dead one's is gone


def test_what_this_process_has_is_not_anothers_and_is_given_back(base: Path) -> None:
    with open_leases({"XDG_RUNTIME_DIR": str(base)}) as leases:
        lease = leases.claim((3, 4))
        assert lease is not None
        assert leases.others() == OtherServers()
    (path,) = (base / "hearth-cores").glob("*.cpus")
    assert path.read_text() == "3-4"
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    lease.close()
    lease.close()
    assert not path.exists()


def test_nothing_is_written_where_nothing_is_taken(base: Path) -> None:
    with open_leases({"XDG_RUNTIME_DIR": str(base)}) as leases:
        assert leases.claim(()) is None
    assert [p.name for p in (base / "hearth-cores").iterdir()] == ["lock"]


@pytest.mark.parametrize("text", [b"", b"\xff", b"0-", b"all", b"-1"])
def test_a_lease_that_names_no_cpus_takes_none(base: Path, text: bytes) -> None:
    assert others(base) == OtherServers()
    path = base / "hearth-cores" / "7-x.cpus"
    path.write_bytes(text)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert others(base) == OtherServers()


def test_without_a_runtime_directory_one_of_the_users_own_is_made(tmp_path: Path) -> None:
    for runtime in ("relative", str(tmp_path / "missing")):
        with open_leases({"XDG_RUNTIME_DIR": runtime}, tmp_path) as leases:
            assert leases.others() == OtherServers()
    made = tmp_path / f"hearth-{os.getuid()}"
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_a_directory_that_is_not_the_users_alone_is_not_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"hearth-{os.getuid()}"
    if kind == "link":
        (tmp_path / "target").mkdir(0o700)
        path.symlink_to(tmp_path / "target")
    elif kind == "file":
        path.write_text("")
    else:
        path.mkdir()
        path.chmod(0o755)
    with open_leases({"XDG_RUNTIME_DIR": str(tmp_path / "missing")}, tmp_path) as leases:
        assert leases.others().why == f"{path} is not a directory of this user alone"
        assert leases.claim((0,)) is None
    assert not (tmp_path / "target" / "lock").exists()


def test_another_users_directory_is_not_used(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hearth-12345").mkdir(0o700)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with open_leases({"XDG_RUNTIME_DIR": str(base)}, tmp_path) as leases:
        assert "not a directory of this user alone" in leases.others().why
    assert list(base.iterdir()) == []


def test_where_no_directory_can_be_made_the_reason_is_told(tmp_path: Path) -> None:
    with open_leases({"XDG_RUNTIME_DIR": "/nowhere"}, tmp_path / "none") as leases:
        assert leases.others().why.endswith("No such file or directory")
        assert leases.claim((0,)) is None


def test_a_server_that_chooses_for_too_long_is_not_waited_for(base: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(base)}
    with open_leases(environment), open_leases(environment, patience_s=0.0) as leases:
        assert leases.others().why.endswith("lock: another server holds it")
        lease = leases.claim((0,))
        assert lease is not None
        lease.close()


CHOOSER = """
import sys
from pathlib import Path
from hearth.host.core_lease import open_leases
from hearth.host.placement import place_threads
with open_leases() as leases:
    placed = place_threads("auto", 1, "auto", Path(sys.argv[1]), range(8), leases.others())
    lease = leases.claim(placed.taken)
print(*placed.cpus, flush=True)
sys.stdin.read()
"""


def test_servers_that_start_at_once_choose_different_cores(base: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "root", topology({cpu: str(cpu) for cpu in range(8)}))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(base)}
    command = [sys.executable, "-c", CHOOSER, str(root)]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for _ in range(6)
        ]
        chosen = [child.stdout.readline() for child in children if child.stdout is not None]
    assert len(set(chosen)) == len(chosen) == 6
