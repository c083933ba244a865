"""Where a running engine's threads and memory are, read back from Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration.server import SMALL, Server

CPUS = sorted(os.sched_getaffinity(0))


def engine_of(server: Server) -> Path:
    """The engine's directory in /proc."""
    return Path(f"/proc/{server.engine_pid}")


def allowed(thread: Path) -> str:
    lines = (thread / "status").read_text(encoding="ascii").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:"))


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: nothing is bound")
def test_each_thread_of_the_kernels_is_bound_to_its_cpu_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    cpus = CPUS[:2]
    with Server(tmp_path, *SMALL, "--cpu-bind", f"{cpus[1]},{cpus[0]}") as server:
        threads = sorted((engine_of(server) / "task").iterdir(), key=lambda t: int(t.name))
        found = [allowed(thread) for thread in threads]
    # The first thread is bound while it computes only.
    assert found[0] not in {str(cpu) for cpu in cpus}
    assert str(cpus[0]) in found[1:]
    assert str(cpus[1]) not in found[1:]


@pytest.mark.skipif(
    not Path("/sys/devices/system/node/node0").exists(), reason="the kernel has no NUMA nodes"
)
def test_the_memory_of_a_named_node_is_preferred(tmp_path: Path) -> None:
    with Server(tmp_path, *SMALL, "--numa", "0") as server:
        maps = (engine_of(server) / "numa_maps").read_text(encoding="ascii")
    # Memory that processes share has a policy of its own.
    own = {line.split()[1] for line in maps.splitlines() if "anon=" in line and "file=" not in line}
    assert own == {"prefer:0"}


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is no other one to take")
def test_two_servers_of_one_thread_are_on_different_cores_and_a_third_says_what_it_shares(
    tmp_path: Path,
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(0o700)
    places = [tmp_path / name for name in "abc"]
    for place in places:
        place.mkdir()
    variables = {"XDG_RUNTIME_DIR": str(runtime)}
    with (
        Server(places[0], *SMALL, "--threads", "1", **variables) as first,
        Server(places[1], *SMALL, "--threads", "1", **variables) as second,
    ):
        masks = [
            {allowed(thread) for thread in (engine_of(server) / "task").iterdir()}
            for server in (first, second)
        ]
        assert all(len(mask) == 1 for mask in masks)
        assert not masks[0] & masks[1]
        assert first.ask("Hi", max_tokens=3) == second.ask("Hi", max_tokens=3)
        mask = ",".join(next(iter(mask)) for mask in masks)
        with Server(places[2], *SMALL, "--cpu-bind", mask, **variables) as third:
            assert "also taken by the hearth server of process" in third.stdout
            assert str(second.engine_pid) in third.stdout
            assert "cores_shared" in third.stderr
