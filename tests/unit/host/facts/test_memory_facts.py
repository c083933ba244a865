"""Memory, limits and pressure, laid out as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.host.facts.trees import write

from hearth.host.facts.limits import UNLIMITED, read_limits
from hearth.host.facts.memory import read_memory_facts
from hearth.host.facts.pressure import Stall, read_counters, read_pressure

HUGE = "sys/kernel/mm/hugepages"
LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max open files            1024                 524288               files     \n"
    "Max locked memory         unlimited            unlimited            bytes     \n"
)


def test_huge_pages_and_their_settings(tmp_path: Path) -> None:
    files = {
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [never]\n",
        f"{HUGE}/hugepages-2048kB/nr_hugepages": "512\n",
        f"{HUGE}/hugepages-2048kB/free_hugepages": "500\n",
        f"{HUGE}/hugepages-1048576kB/nr_hugepages": "0\n",
    }
    memory = read_memory_facts(write(tmp_path, files))
    assert (memory.thp_mode.value, memory.thp_defrag.value) == ("madvise", "never")
    pools = memory.huge_pools.value
    assert pools is not None
    assert [pool.page_bytes for pool in pools] == [2 << 20, 1 << 30]
    assert (pools[0].num_pages.value, pools[0].num_free.value) == (512, 500)
    assert pools[1].num_free.why == "no such file"


def test_limits_of_the_process_and_the_kernel(tmp_path: Path) -> None:
    files = {
        "proc/self/limits": LIMITS,
        "proc/sys/fs/file-max": "9223372036854775807\n",
        "proc/sys/fs/file-nr": "1312\t0\t9223372036854775807\n",
        "proc/sys/net/core/somaxconn": "4096\n",
        "proc/sys/vm/swappiness": "60\n",
        "proc/sys/vm/overcommit_memory": "0\n",
        "proc/sys/vm/max_map_count": "65530\n",
    }
    limits = read_limits(write(tmp_path, files))
    assert (limits.process.nofile_soft.value, limits.process.nofile_hard.value) == (1024, 524288)
    assert limits.process.memlock_soft_bytes.value == UNLIMITED
    assert (limits.file_max.value, limits.files_in_use.value) == ((1 << 63) - 1, 1312)
    assert (limits.somaxconn.value, limits.swappiness.value) == (4096, 60)
    assert limits.overcommit_memory.value == 0
    assert limits.max_map_count.value == 65530
    assert limits.somaxconn.source == "/proc/sys/net/core/somaxconn"


def test_limits_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    limits = read_limits(write(tmp_path, {"proc/sys/vm/swappiness": "a lot\n"}))
    assert limits.swappiness.value is None
    assert limits.swappiness.why == "not a number: 'a lot'"
    assert limits.somaxconn.why == "no such file"


def test_the_kernels_own_files_are_read(tmp_path: Path) -> None:
    # Linux refuses to give a file below /proc/sys to who asks for megabytes of it.
    assert read_limits().max_map_count.value is not None


PSI = (
    "some avg10=1.50 avg60=0.25 avg300=0.10 total=99\nfull avg10=0.50 avg60=0.00 avg300=0 total=9\n"
)
STAT = "cpu  {} 0 0 {} {} 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
DISK = "{} 0 0 {} {} 0 0 {} 0 0 0 0 0 0 0\n"


def pressured(root: Path, ticks: tuple[int, int, int], disk: tuple[int, int, int, int]) -> Path:
    files = {
        "proc/pressure/io": PSI,
        "proc/stat": STAT.format(*ticks),
        "sys/block/sda/stat": DISK.format(*disk),
        "sys/block/loop0/stat": DISK.format(10, 99999, 10, 99999),
    }
    return write(root, files)


def test_pressure_since_the_boot_and_between_two_readings(tmp_path: Path) -> None:
    root = pressured(tmp_path, (50, 40, 10), (100, 300, 100, 100))
    earlier = read_counters(root)
    since_boot = read_pressure(root)
    assert since_boot.io.value == Stall(1.5, 0.25, 0.5, 0.0)
    assert since_boot.cpu.why == "no such file"
    assert since_boot.io_wait_share.value == pytest.approx(0.1)
    assert since_boot.disk_answers.value is not None
    assert [(d.disk, d.mean_ms, d.is_slow) for d in since_boot.disk_answers.value] == [
        ("sda", 2.0, False)
    ]
    pressured(tmp_path, (60, 50, 40), (110, 500, 100, 100))
    now = read_pressure(root, earlier)
    assert now.io_wait_share.value == pytest.approx(0.6)
    assert now.disk_answers.value is not None
    assert [(d.disk, d.mean_ms, d.is_slow) for d in now.disk_answers.value] == [("sda", 20.0, True)]


def test_a_quiet_moment_has_no_share(tmp_path: Path) -> None:
    root = pressured(tmp_path, (50, 40, 10), (100, 300, 100, 100))
    quiet = read_pressure(root, read_counters(root))
    assert quiet.io_wait_share.value is None
    assert quiet.disk_answers.why == "no request was counted"
