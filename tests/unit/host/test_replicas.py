"""Servers of one machine take different nodes and cores; hybrid processors their fast ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.host.facts.trees import (
    arm_board,
    hybrid_laptop,
    smt8_power,
    topology,
    two_socket_server,
    write,
)

from hearth.host.core_lease import OtherServers
from hearth.host.placement import Placement, place_threads

FIRST_NODE, SECOND_NODE = (0, 1, 2, 3), (4, 5, 6, 7)


def taken(*servers: tuple[int, ...]) -> OtherServers:
    """Servers of processes 100, 101, … on these CPUs."""
    pids: dict[int, tuple[int, ...]] = {}
    for pid, cpus in enumerate(servers, start=100):
        for cpu in cpus:
            pids[cpu] = (*pids.get(cpu, ()), pid)
    return OtherServers(pids)


def on_server(
    tmp_path: Path, *servers: tuple[int, ...], threads: int | None = None, numa: str = "auto"
) -> Placement:
    """Two nodes of four cores with two hardware threads each."""
    root = write(tmp_path, two_socket_server())
    return place_threads("auto", threads, numa, root, range(16), taken(*servers))


def test_one_server_after_another_takes_a_free_node(tmp_path: Path) -> None:
    first = on_server(tmp_path)
    second = on_server(tmp_path, first.taken)
    assert {first.cpus, second.cpus} == {FIRST_NODE, SECOND_NODE}
    assert second.memory is not None
    assert (second.memory.node, second.warnings) == (0 if second.cpus == FIRST_NODE else 1, ())
    assert "the most free cores (4 of 4)" in second.memory.reason


def test_a_third_server_shares_and_says_with_whom(tmp_path: Path) -> None:
    third = on_server(tmp_path, FIRST_NODE, SECOND_NODE)
    assert third.num_threads == 4
    assert third.bind_reason == "cores that other servers have as well"
    (warning,) = third.warnings
    pid = 100 if third.cpus == FIRST_NODE else 101
    assert f"also taken by the hearth server of process {pid}; both get slower" in warning
    fourth = on_server(tmp_path, FIRST_NODE, SECOND_NODE, third.taken)
    assert fourth.cpus != third.cpus  # the node with fewer servers


def test_of_two_nodes_the_one_that_is_all_free_is_preferred(tmp_path: Path) -> None:
    placement = on_server(tmp_path, (4,), threads=2)
    assert placement.cpus == (0, 1)
    assert placement.process_cpus == {0, 1, 8, 9}
    assert placement.bind_reason == "2 of 4 cores, which other servers leave alone"


def test_without_a_free_node_the_free_cores_are_taken(tmp_path: Path) -> None:
    placement = on_server(tmp_path, (0, 1, 2), (4,))
    assert placement.cpus == (5, 6, 7)
    assert placement.threads_reason.startswith("3 of 4 free, other servers have the rest")
    assert placement.warnings == ()


def test_another_hardware_thread_of_a_core_is_that_core(tmp_path: Path) -> None:
    assert on_server(tmp_path, (8, 12, 13), numa="0").cpus == (1, 2, 3)


def test_more_threads_than_are_free_share(tmp_path: Path) -> None:
    placement = on_server(tmp_path, (0,), (4, 5), threads=4)
    assert placement.cpus == FIRST_NODE
    assert "CPU 0: also taken by the hearth server of process 100" in placement.warnings[0]


def test_a_list_of_cpus_is_taken_as_it_is_and_what_it_shares_is_said(tmp_path: Path) -> None:
    root = write(tmp_path, two_socket_server())
    placement = place_threads("8,1", None, "auto", root, range(16), taken((0,)))
    assert (placement.cpus, placement.taken) == ((8, 1), (8, 1))
    assert placement.warnings[0].startswith("CPU 8: also taken by the hearth server of process 100")


def test_two_servers_of_one_thread_take_different_cores(tmp_path: Path) -> None:
    root = write(tmp_path, topology({0: "0", 1: "1"}))
    first = place_threads("auto", 1, root=root, affinity=(0, 1))
    second = place_threads("auto", 1, root=root, affinity=(0, 1), others=taken(first.taken))
    assert (first.cpus, second.cpus) == ((0,), (1,))
    assert first.process_cpus == {0}
    assert second.process_cpus == {1}


def test_containers_which_do_not_see_each_other_do_not_all_begin_with_the_first_core(
    tmp_path: Path,
) -> None:
    files = {**topology({cpu: str(cpu) for cpu in range(8)}), ".dockerenv": "here"}
    seen = set[tuple[int, ...]]()
    for name in ("a", "b", "c", "d", "e", "f"):
        root = write(tmp_path / name, {**files, "etc/hostname": name})
        placement = place_threads("auto", 2, root=root, affinity=range(8))
        assert placement == place_threads("auto", 2, root=root, affinity=range(8))
        seen.add(placement.cpus)
    assert len(seen) > 1
    assert seen <= {(0, 1), (2, 3), (4, 5), (6, 7)}


def test_a_quota_takes_no_cores_from_others(tmp_path: Path) -> None:
    files = {
        **topology({cpu: str(cpu) for cpu in range(4)}),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
    }
    root = write(tmp_path, files)
    for threads in (None, 1):
        placement = place_threads("auto", threads, root=root, affinity=range(4))
        assert (placement.cpus, placement.taken, placement.process_cpus) == ((), (), frozenset())


def test_that_others_cannot_be_seen_is_said_and_stops_nothing(tmp_path: Path) -> None:
    root = write(tmp_path, topology({0: "0", 1: "1"}))
    blind = OtherServers(why="/tmp: Read-only file system")
    placement = place_threads("auto", None, root=root, affinity=(0, 1), others=blind)
    assert placement.cpus == (0, 1)
    assert placement.bind_reason == (
        "each thread has a core of its own (other servers are not seen: /tmp: Read-only file "
        "system)"
    )


def test_the_performance_cores_of_a_hybrid_processor_are_taken_alone(tmp_path: Path) -> None:
    root = write(tmp_path, hybrid_laptop())
    placement = place_threads("auto", None, root=root, affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (2, (0, 2))
    assert placement.process_cpus == {0, 1, 2, 3}
    assert placement.threads_reason == (
        "2 performance cores of 6 physical cores in the affinity mask (8 hardware threads); "
        "4 efficiency ones are left out: --threads 6 takes all"
    )
    assert placement.core_kind == "performance"


@pytest.mark.parametrize(
    ("threads", "cpus", "kind"),
    [(1, (0,), "performance"), (3, (0, 2, 4), ""), (6, (0, 2, 4, 5, 6, 7), "")],
)
def test_threads_that_are_asked_for_fill_the_performance_cores_first(
    tmp_path: Path, threads: int, cpus: tuple[int, ...], kind: str
) -> None:
    root = write(tmp_path, hybrid_laptop())
    placement = place_threads("auto", threads, root=root, affinity=range(8))
    assert (placement.cpus, placement.core_kind) == (cpus, kind)


def test_a_second_server_on_a_hybrid_processor_takes_the_efficiency_cores(tmp_path: Path) -> None:
    root = write(tmp_path, hybrid_laptop())
    second = place_threads("auto", None, root=root, affinity=range(8), others=taken((0, 2)))
    assert second.cpus[0] >= 4
    assert second.warnings == ()


def test_a_mask_of_efficiency_cores_alone_is_used_whole(tmp_path: Path) -> None:
    root = write(tmp_path, hybrid_laptop())
    placement = place_threads("auto", None, root=root, affinity=(4, 5))
    assert placement.cpus == (4, 5)


def test_unbound_threads_are_as_many_as_there_are_performance_cores(tmp_path: Path) -> None:
    root = write(tmp_path, hybrid_laptop())
    assert place_threads("none", None, root=root, affinity=range(8)).num_threads == 2


def test_the_large_cores_of_a_board_are_told_by_their_capacity(tmp_path: Path) -> None:
    root = write(tmp_path, arm_board())
    placement = place_threads("auto", None, root=root, affinity=range(8))
    assert (placement.cpus, placement.core_kind) == ((4, 5, 6, 7), "large")
    for cpu in range(4):  # a phone: one prime core, three large ones, four small ones
        write(tmp_path, {f"sys/devices/system/cpu/cpu{cpu + 4}/cpu_capacity": "820\n"})
    write(tmp_path, {"sys/devices/system/cpu/cpu7/cpu_capacity": "1024\n"})
    placement = place_threads("auto", None, root=root, affinity=range(8))
    assert placement.cpus == (4, 5, 6, 7)


def test_eight_hardware_threads_of_a_core_are_one_core_for_every_server(tmp_path: Path) -> None:
    root = write(tmp_path, smt8_power())
    first = place_threads("auto", 1, root=root, affinity=range(16))
    second = place_threads("auto", 1, root=root, affinity=range(16), others=taken((3,)))
    assert (first.cpus, second.cpus) == ((0,), (8,))
    assert second.process_cpus == set(range(8, 16))
