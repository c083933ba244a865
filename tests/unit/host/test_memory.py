"""What the machine says of its memory, laid out as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hearth.core.errors import CapacityError
from hearth.core.units import GIB, KIB
from hearth.host.memory import read_memory


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal: {16 * GIB // KIB} kB\nMemFree: 100 kB\nMemAvailable: {12 * GIB // KIB} kB\n"


def test_without_limits_mem_available_counts(tmp_path: Path) -> None:
    memory = read_memory(write(tmp_path, {"proc/meminfo": MEMINFO}))
    assert memory.available_bytes == 12 * GIB
    assert memory.describe() == "12.0 GiB available (MemAvailable in /proc/meminfo)"


def test_a_cgroup_v2_limit_on_an_ancestor_counts_less_what_is_used_and_not_reclaimable(
    tmp_path: Path,
) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/kubepods/pod1/box\n",
        "sys/fs/cgroup/kubepods/pod1/box/memory.max": "max\n",
        "sys/fs/cgroup/kubepods/pod1/box/memory.current": "5\n",
        "sys/fs/cgroup/kubepods/pod1/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/kubepods/pod1/memory.current": f"{2 * GIB}\n",
        "sys/fs/cgroup/kubepods/pod1/memory.stat": (
            f"anon 7\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n"
        ),
    }
    memory = read_memory(write(tmp_path, files))
    assert memory.available_bytes == 3 * GIB
    assert memory.tightest.source == "cgroup v2 limit of 4.00 GiB"


def test_a_cgroup_v1_limit_counts_and_no_limit_does_not(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,memory:/docker/1\n",
        "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/docker/1/memory.stat": f"inactive_file 1\ntotal_inactive_file {KIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    memory = read_memory(write(tmp_path, files))
    assert memory.available_bytes == GIB + KIB
    assert len(memory.facts) == 2


def test_a_host_that_tells_nothing_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="mount /proc"):
        read_memory(tmp_path)


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100\n",
        "sys/fs/cgroup/memory.current": "300\n",
    }
    assert read_memory(write(tmp_path, files)).available_bytes == 0


def test_this_machine_has_memory() -> None:
    assert read_memory().available_bytes > 0
