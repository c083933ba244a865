"""Which threads read which memory, and what becomes of the samples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.host.facts.trees import smt8_power, topology, two_socket_server, write

from hearth.core.errors import ConfigError
from hearth.host.bandwidth import MemoryReads, ReadPlan, plan_reads, read_bytes_s
from hearth.host.speed import Samples

GIB = 1 << 30


def test_one_to_all_threads_read_on_cores_of_their_own(tmp_path: Path) -> None:
    root = write(tmp_path, topology({cpu: f"{cpu % 3},{cpu % 3 + 3}" for cpu in range(6)}))
    plans = plan_reads((), root, range(6))
    assert [plan.cpus for plan in plans] == [(0,), (0, 1), (0, 1, 2)]
    assert plan_reads((5, 1), root, range(6)) == (ReadPlan((5,)), ReadPlan((5, 1)))


def test_many_cores_are_counted_in_powers_of_two(tmp_path: Path) -> None:
    counts = [len(plan.cpus) for plan in plan_reads(range(40), tmp_path, range(40))]
    assert counts == [*range(1, 9), 16, 32, 40]


def test_the_cores_of_each_node_read_its_memory_and_that_of_the_other(tmp_path: Path) -> None:
    root = write(tmp_path, two_socket_server())
    nodes = [plan for plan in plan_reads((), root, range(16)) if plan.cpu_node is not None]
    first, second = (0, 1, 2, 3), (4, 5, 6, 7)
    assert nodes == [
        ReadPlan(first, 0, 0),
        ReadPlan(first, 0, 1),
        ReadPlan(second, 1, 1),
        ReadPlan(second, 1, 0),
    ]


def test_of_several_nodes_the_farthest_is_read(tmp_path: Path) -> None:
    files = topology({cpu: str(cpu) for cpu in range(3)})
    for node, distances in enumerate(("10 12 32", "12 10 22", "32 22 10")):
        base = f"sys/devices/system/node/node{node}"
        files |= {f"{base}/cpulist": str(node), f"{base}/distance": distances}
    plans = plan_reads((), write(tmp_path, files), range(3))
    assert [(p.cpu_node, p.memory_node) for p in plans if p.cpu_node != p.memory_node] == [
        (0, 2),
        (1, 2),
        (2, 0),
    ]


def test_nodes_that_may_not_be_used_and_nodes_without_cpus_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "a", two_socket_server())
    assert all(plan.cpu_node is None for plan in plan_reads((), root, range(4)))
    root = write(tmp_path / "b", smt8_power())
    assert all(plan.cpu_node is None for plan in plan_reads((), root, range(16)))


def test_samples_are_kept_with_the_least_and_the_most(tmp_path: Path) -> None:
    del tmp_path
    rates = iter((3e9, 6e9, 5e9, 1e10, 4e9, 8e9))
    sizes: list[int] = []

    def read(_: ReadPlan, num_bytes: int) -> float:
        sizes.append(num_bytes)
        return next(rates)

    reads = MemoryReads((ReadPlan((0,)), ReadPlan((0, 1))), 256 << 20, 64 * GIB)
    for _ in range(3):
        reads.sample(read)
    one, two = reads.results()
    assert (one.num_threads, one.bytes_s) == (1, Samples(3e9, 4e9, 5e9, 3))
    assert (two.num_threads, two.bytes_s) == (2, Samples(6e9, 8e9, 1e10, 3))
    assert sizes[:2] == [768 << 20, 384 << 20]  # three times the last cache together


def test_a_small_machine_is_not_filled(tmp_path: Path) -> None:
    del tmp_path
    sizes: list[int] = []

    def read(_: ReadPlan, num_bytes: int) -> float:
        sizes.append(num_bytes)
        return 1.0

    MemoryReads((ReadPlan((0, 1)),), 256 << 20, GIB).sample(read)
    assert sizes == [64 << 20]


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), ConfigError("node 1: refused")])
def test_what_cannot_be_measured_is_said_once(error: Exception) -> None:
    def read(plan: ReadPlan, _: int) -> float:
        if plan.memory_node == 1:
            raise error
        return 1.0

    reads = MemoryReads((ReadPlan((0,)), ReadPlan((0, 2), 0, 1)), 0, GIB)
    for _ in range(2):
        reads.sample(read)
    assert [found.bytes_s.count for found in reads.results()] == [2]
    (note,) = reads.notes
    assert note.startswith("memory read by 2 threads of node 0 from 1 was not measured: ")


def test_memory_is_read_and_the_callers_affinity_stays() -> None:
    before = os.sched_getaffinity(0)
    assert read_bytes_s(ReadPlan((min(before),)), 4 << 20) > 1e8
    assert os.sched_getaffinity(0) == before


def test_a_cpu_that_may_not_be_used_is_an_error_and_nobody_waits_for_its_thread() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        read_bytes_s(ReadPlan((min(os.sched_getaffinity(0)), 1023)), 4 << 20)
