"""How many cores are worth using, laid out as files."""

from __future__ import annotations

from pathlib import Path

from tests.unit.host.test_memory import write

from hearth.host.cpu import read_usable_cores


def topology(num_cores: int) -> dict[str, str]:
    """Two hardware threads a core: (0, n), (1, n + 1), …"""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": (
            f"{cpu % num_cores},{cpu % num_cores + num_cores}\n"
        )
        for cpu in range(2 * num_cores)
    }


def test_two_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    cores = read_usable_cores(write(tmp_path, topology(4)), range(8))
    assert cores.count == 4
    assert cores.reason == "4 physical cores in the affinity mask (8 hardware threads)"


def test_the_affinity_mask_restricts(tmp_path: Path) -> None:
    assert read_usable_cores(write(tmp_path, topology(4)), {0, 4, 1}).count == 2


def test_a_quota_below_the_cores_restricts_and_one_core_is_the_least(tmp_path: Path) -> None:
    files = {
        **topology(4),
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
    }
    cores = read_usable_cores(write(tmp_path, files), range(8))
    assert cores.count == 2
    assert cores.reason.endswith("the cgroup's CPU quota is 2.5")
    write(tmp_path, {"sys/fs/cgroup/box/cpu.max": "20000 100000\n"})
    assert read_usable_cores(tmp_path, range(8)).count == 1


def test_a_version_1_quota_restricts_and_minus_one_is_none(tmp_path: Path) -> None:
    files = {
        **topology(4),
        "proc/self/cgroup": "3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert read_usable_cores(write(tmp_path, files), range(8)).count == 3


def test_without_a_topology_every_logical_cpu_counts(tmp_path: Path) -> None:
    assert read_usable_cores(tmp_path, range(3)).count == 3
