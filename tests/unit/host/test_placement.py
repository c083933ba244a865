"""Which CPU each thread gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.test_cpu import topology
from tests.unit.host.test_memory import write

from hearth.core.errors import ConfigError
from hearth.host.cpu import format_cpus
from hearth.host.placement import parse_cpus, place_threads


def test_a_thread_for_every_core_is_bound_to_one_hardware_thread_of_each(tmp_path: Path) -> None:
    placement = place_threads("auto", None, root=write(tmp_path, topology(4)), affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (4, (0, 1, 2, 3))
    assert placement.bind_reason == "each thread has a core of its own"


def test_the_affinity_mask_chooses_the_hardware_thread(tmp_path: Path) -> None:
    placement = place_threads(
        "auto", None, root=write(tmp_path, topology(4)), affinity={4, 2, 6, 7}
    )
    assert placement.cpus == (2, 4, 7)


def test_fewer_threads_than_cores_leave_the_rest_to_other_servers(tmp_path: Path) -> None:
    placement = place_threads("auto", 3, root=write(tmp_path, topology(4)), affinity=range(8))
    assert (placement.num_threads, placement.cpus, placement.taken) == (3, (0, 1, 2), (0, 1, 2))
    assert placement.process_cpus == {0, 1, 2, 4, 5, 6}
    assert placement.bind_reason == "3 of 4 cores, which other servers leave alone"


def test_more_threads_than_cores_are_left_to_linux(tmp_path: Path) -> None:
    placement = place_threads("auto", 5, root=write(tmp_path, topology(4)), affinity=range(8))
    assert (placement.num_threads, placement.cpus, placement.taken) == (5, (), (0, 1, 2, 3))
    assert placement.bind_reason == "there are 5 threads for 4 cores"


def test_a_quota_below_the_cores_leaves_the_threads_to_linux(tmp_path: Path) -> None:
    files = {
        **topology(4),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
    }
    placement = place_threads("auto", None, root=write(tmp_path, files), affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (2, ())


def test_one_thread_is_not_bound(tmp_path: Path) -> None:
    assert (
        place_threads("auto", None, root=write(tmp_path, topology(1)), affinity=range(2)).cpus == ()
    )


def test_none_binds_nothing(tmp_path: Path) -> None:
    placement = place_threads("none", None, root=write(tmp_path, topology(4)), affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (4, ())


def test_a_list_gives_the_threads_and_their_order() -> None:
    placement = place_threads("6,1-2", None, affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (3, (6, 1, 2))
    assert place_threads("6,1-2", 3, affinity=range(8)).cpus == (6, 1, 2)


@pytest.mark.parametrize(
    ("bind", "threads", "message"),
    [
        ("0,9-10", None, "--cpu-bind asks for CPU 9-10, which this process may not use"),
        ("0-1", 3, "--cpu-bind has 2 of them, and --threads is 3"),
        ("0,0", None, "--cpu-bind 0,0 names a CPU twice"),
        ("all", None, "--cpu-bind is 'all': neither auto nor none nor a list"),
        ("", None, "--cpu-bind is '': "),
        ("3-1", None, "--cpu-bind is '3-1': "),
        ("-1", None, "--cpu-bind is '-1': "),
        ("٣", None, "--cpu-bind is '٣': "),
        ("0-999999", None, "--cpu-bind is '0-999999': "),
    ],
)
def test_a_list_that_cannot_be_is_refused(bind: str, threads: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message.replace("'", ".")):
        place_threads(bind, threads, affinity=range(8))


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_written_list_is_read_back(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == tuple(sorted(cpus))


def two_nodes(root: Path) -> Path:
    """Nodes of two cores with two hardware threads each; the second one has more free memory."""
    files = topology(4)
    for node, cpus, free in ((0, "0-1,4-5", 1000), (1, "2-3,6-7", 2000)):
        base = f"sys/devices/system/node/node{node}"
        files |= {f"{base}/cpulist": cpus, f"{base}/meminfo": f"Node {node} MemFree: {free} kB\n"}
    return write(root, files)


def test_of_two_nodes_alike_the_one_with_more_free_memory_is_used_alone(tmp_path: Path) -> None:
    placement = place_threads("auto", None, root=two_nodes(tmp_path), affinity=range(8))
    assert (placement.num_threads, placement.cpus) == (2, (2, 3))
    assert placement.threads_reason.endswith("on NUMA node 1")
    assert placement.memory is not None
    assert placement.memory.node == 1
    assert placement.memory.cpus == {2, 3, 6, 7}


def test_the_node_with_more_cores_that_may_be_used_wins(tmp_path: Path) -> None:
    placement = place_threads("auto", None, root=two_nodes(tmp_path), affinity=(0, 1, 2))
    assert placement.memory is not None
    assert (placement.memory.node, placement.cpus) == (0, (0, 1))


def test_all_nodes_are_used_where_that_is_asked_for(tmp_path: Path) -> None:
    placement = place_threads("auto", None, "none", two_nodes(tmp_path), range(8))
    assert placement.memory is not None
    assert (placement.num_threads, placement.memory.node) == (4, None)


def test_more_threads_than_a_node_has_cores_use_all_nodes(tmp_path: Path) -> None:
    placement = place_threads("auto", 4, root=two_nodes(tmp_path), affinity=range(8))
    assert placement.memory is not None
    assert (placement.cpus, placement.memory.node) == ((0, 1, 2, 3), None)
    assert placement.memory.reason == "--threads 4 is more than a node has cores"


def test_cpus_of_one_node_of_several_have_its_memory(tmp_path: Path) -> None:
    root = two_nodes(tmp_path)
    for placement in (
        place_threads("2,3", None, root=root, affinity=range(8)),
        place_threads("auto", None, root=root, affinity=(2, 3)),
    ):
        assert placement.memory is not None
        assert (placement.cpus, placement.memory.node) == ((2, 3), 1)


def test_a_node_may_be_named(tmp_path: Path) -> None:
    placement = place_threads("auto", None, "0", two_nodes(tmp_path), range(8))
    assert placement.memory is not None
    assert (placement.cpus, placement.memory.node) == ((0, 1), 0)


def test_listed_cpus_of_one_node_take_its_memory_and_of_two_nodes_none(tmp_path: Path) -> None:
    root = two_nodes(tmp_path)
    same = place_threads("2,7", None, "1", root, range(8)).memory
    both = place_threads("1,2", None, "auto", root, range(8)).memory
    assert same is not None
    assert both is not None
    assert (same.node, both.node) == (1, None)
    assert both.reason == "the CPUs of --cpu-bind are on nodes 0, 1"


@pytest.mark.parametrize("node", ["2", "-1", "one", ""])
def test_a_node_that_is_none_is_refused(tmp_path: Path, node: str) -> None:
    with pytest.raises(ConfigError, match=r"neither auto nor none nor a node") as caught:
        place_threads("auto", None, node, two_nodes(tmp_path), range(8))
    assert caught.value.hint == "nodes: 0, 1"


def test_a_node_without_the_listed_cpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on another node"):
        place_threads("1,2", None, "1", two_nodes(tmp_path), range(8))
