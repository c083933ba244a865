"""Processors and NUMA nodes of other machines."""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.facts import trees
from tests.unit.host.facts.trees import write

from hearth.host.facts.cpu import ALL_ALIKE, CoreKind, CpuCache, read_cpu
from hearth.host.facts.memory import read_memory_facts
from hearth.host.facts.numa import read_numa


def test_a_server_of_two_sockets(tmp_path: Path) -> None:
    root = write(tmp_path, trees.two_socket_server())
    cpu = read_cpu(root, range(16), "x86_64")
    assert cpu.model.value == "Intel(R) Xeon(R) Platinum 8480+"
    assert cpu.vendor.value == "GenuineIntel"
    assert (cpu.sockets.value, cpu.physical_cores.value, cpu.logical_cpus.value) == (2, 8, 16)
    assert cpu.threads_per_core.value == 2
    assert cpu.usable_cores.value == 8
    assert cpu.isa.value is not None
    assert {"avx512_vnni", "amx_int8"} <= set(cpu.isa.value)
    assert "fpu" not in cpu.isa.value
    assert cpu.caches.value == (
        CpuCache(1, "Data", 48 << 10, 8),
        CpuCache(3, "Unified", 107520 << 10, 2),
    )
    assert cpu.governor.value == "powersave"
    assert cpu.quota_cores.value is None
    assert cpu.quota_cores.why == "no limit"


def test_the_nodes_of_two_sockets_have_cpus_memory_and_distances(tmp_path: Path) -> None:
    nodes = read_numa(write(tmp_path, trees.two_socket_server())).nodes.value
    assert nodes is not None
    assert [node.cpus for node in nodes] == ["0-3,8-11", "4-7,12-15"]
    assert [node.distances.value for node in nodes] == [(10, 21), (21, 10)]
    assert [node.total_bytes.value for node in nodes] == [263921234 << 10] * 2
    assert nodes[1].free_bytes.value == 250001 << 10


def test_eight_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    root = write(tmp_path, trees.smt8_power())
    cpu = read_cpu(root, range(16), "ppc64le")
    assert (cpu.physical_cores.value, cpu.threads_per_core.value) == (2, 8)
    assert cpu.usable_cores.value == 2
    assert cpu.model.value == "POWER9, altivec supported"
    assert cpu.isa.value == ("altivec",)
    nodes = read_numa(root).nodes.value
    assert nodes is not None
    assert [(node.number, node.cpus) for node in nodes] == [(0, "0-15"), (252, "")]


def test_a_hybrid_laptop_has_two_kinds_of_cores(tmp_path: Path) -> None:
    cpu = read_cpu(write(tmp_path, trees.hybrid_laptop()), range(8), "x86_64")
    assert cpu.core_kinds.value == (CoreKind("performance", "0-3"), CoreKind("efficiency", "4-7"))
    assert (cpu.physical_cores.value, cpu.threads_per_core.value) == (6, 2)


def test_an_arm_board_is_named_by_its_cores(tmp_path: Path) -> None:
    cpu = read_cpu(write(tmp_path, trees.arm_board()), range(8), "aarch64")
    assert cpu.model.value == "Cortex-A55 + Cortex-A76"
    assert cpu.vendor.value == "ARM"
    assert cpu.core_kinds.value == (
        CoreKind("capacity 414", "0-3"),
        CoreKind("capacity 1024", "4-7"),
    )
    assert cpu.isa.value == ("asimd", "asimdhp", "asimddp")
    assert cpu.sockets.value is None  # its firmware says -1
    assert cpu.sockets.why


def test_without_capacities_the_part_numbers_tell_the_kinds(tmp_path: Path) -> None:
    files = {k: v for k, v in trees.arm_board().items() if not k.endswith("cpu_capacity")}
    cpu = read_cpu(write(tmp_path, files), range(8), "aarch64")
    assert cpu.core_kinds.value == (CoreKind("Cortex-A55", "0-3"), CoreKind("Cortex-A76", "4-7"))


def test_a_board_without_any_numbers_is_named_by_its_device_tree(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": "processor: 0\n", "proc/device-tree/model": "Some Board\0"}
    assert read_cpu(write(tmp_path, files), {0}, "riscv64").model.value == "Some Board"


def test_cores_of_equal_capacity_are_all_alike(tmp_path: Path) -> None:
    files = trees.topology({0: "0", 1: "1"})
    files |= {f"{trees.CPUS}/cpu{cpu}/cpu_capacity": "1024" for cpu in range(2)}
    cpu = read_cpu(write(tmp_path, files), {0, 1}, "x86_64")
    assert cpu.core_kinds.value == (CoreKind(ALL_ALIKE, "0-1"),)


def test_the_quota_of_a_container_limits_the_cores_in_both_versions(tmp_path: Path) -> None:
    new = read_cpu(write(tmp_path / "2", trees.container_v2()), range(8), "x86_64")
    assert (new.quota_cores.value, new.usable_cores.value, new.physical_cores.value) == (1.5, 1, 8)
    old = read_cpu(write(tmp_path / "1", trees.container_v1()), range(8), "x86_64")
    assert (old.quota_cores.value, old.usable_cores.value) == (3.0, 3)


def test_the_memory_limit_of_a_container_counts_in_both_versions(tmp_path: Path) -> None:
    new = read_memory_facts(write(tmp_path / "2", trees.container_v2()))
    assert (new.cgroup_limit_bytes.value, new.available_bytes.value) == (4 << 30, 3 << 30)
    assert new.swap_total_bytes.value == 0
    old = read_memory_facts(write(tmp_path / "1", trees.container_v1()))
    assert (old.cgroup_limit_bytes.value, old.available_bytes.value) == (8 << 30, 6 << 30)
    assert old.swap_total_bytes.why == "no SwapTotal there"


def test_a_host_that_tells_nothing_says_why_for_every_value(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path, {0}, "x86_64")
    for fact in (cpu.model, cpu.sockets, cpu.physical_cores, cpu.isa, cpu.caches, cpu.governor):
        assert fact.value is None
        assert fact.why
    assert read_numa(tmp_path).nodes.why


def test_this_machine_has_a_processor() -> None:
    cpu = read_cpu()
    assert cpu.usable_cores.value
    assert cpu.affinity.value
