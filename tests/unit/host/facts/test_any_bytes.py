"""Whatever stands in the kernel's files, no reader raises, and the facts go through JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.host.facts import trees
from tests.unit.host.facts.fake_nvml import FakeNvml

from hearth.host.facts.pressure import read_counters
from hearth.host.facts.report import HostFacts, from_json, read_host, to_json
from hearth.host.facts.software import read_software

PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
OTHERS = {
    "proc/pressure/cpu": PSI,
    "proc/pressure/memory": PSI,
    "proc/pressure/io": PSI,
    "proc/stat": "cpu 1 2 3 4 5 6 7 8\n",
    "proc/self/limits": "Max open files 1 2 files\nMax locked memory 1 2 bytes\n",
    "proc/self/cgroup": "0::/a\n4:cpu,memory:/a\n",
    "proc/meminfo": "MemTotal: 1 kB\nMemAvailable: 1 kB\n",
    "proc/driver/nvidia/version": "NVRM version: x  570.86.15  y\n",
    "proc/sys/fs/file-nr": "1 2 3\n",
    "proc/sys/fs/file-max": "1\n",
    "proc/sys/vm/swappiness": "1\n",
    "etc/os-release": "PRETTY_NAME=x\n",
    "sys/fs/cgroup/a/cpu.max": "1 2\n",
    "sys/fs/cgroup/a/memory.max": "1\n",
    "sys/fs/cgroup/a/memory.current": "1\n",
    "sys/fs/cgroup/a/memory.stat": "inactive_file 1\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always]\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "1\n",
    "sys/block/sda/stat": "1 2 3 4 5 6 7 8\n",
    "sys/class/dmi/id/sys_vendor": "QEMU\n",
    "sys/devices/cpu_core/cpus": "0\n",
    "version.py": "cuda = '12.8'\n",
}
DEVICE = (
    *("dev", "size", "partition", "queue/rotational", "queue/scheduler", "dm/uuid", "dm/name"),
    *("queue/read_ahead_kb", "bcache/cache_mode", "bcache/sequential_cutoff", "device/model"),
)


def everything() -> dict[str, str]:
    """All files that any reader opens."""
    files = trees.two_socket_server() | trees.arm_board() | trees.wsl2() | OTHERS
    files |= {f"sys/class/block/bcache0/{name}": "1" for name in DEVICE}
    return files | trees.mounts("8:1 / ext4 /dev/bcache0")


# Bytes that numbers, lists and lines are made of, and digits that int() does not take as such.
PIECES = st.sampled_from(
    [
        *(b"0", b"9" * 18, b"9" * 19, b"9" * 30, b"9" * 5000, b"0" * 20, b"-", b"-1", b"1e9"),
        *("²".encode(), "٣".encode(), b"\xff", b"\0", b"\\777", b"nan", b".", b"4.0M", b"kB"),
        *(b",", b"0-4294967295", b"\n", b":", b"=", b" ", b" - ", b"[", b"]", b"/", b".."),
        *(b"cpu", b"processor", b"MemTotal: ", b"Max open files", b"some", b"avg10=", b"max"),
        *(b"[wsl2]\nmemory=", b"cuda = '1'"),
    ]
)
CONTENT = st.one_of(st.binary(max_size=64), st.lists(PIECES, max_size=12).map(b"".join))


def lay_out(root: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def facts_of(root: Path) -> HostFacts:
    """By every reader there is; software's are no part of a host's."""
    earlier = read_counters(root)
    software = read_software(root, lambda _: "1+cu99", root, {})
    assert software.python.value
    return read_host(Path("/"), root, nvml=FakeNvml(1), earlier=earlier, environment={})


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tree for all examples: writing hundreds of files for each would take most of the time."""
    root = tmp_path_factory.mktemp("host")
    lay_out(root, {name: text.encode() for name, text in everything().items()})
    return root


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(everything())), CONTENT, min_size=1, max_size=8))
def test_any_bytes_in_some_of_the_files_are_read_without_an_error(
    host: Path, contents: dict[str, bytes]
) -> None:
    lay_out(host, contents)
    facts = facts_of(host)
    sound = everything()
    lay_out(host, {name: sound[name].encode() for name in contents})
    assert from_json(to_json(facts)) == facts


@settings(max_examples=20, deadline=None)
@given(CONTENT, st.sampled_from(["proc", "sys/class", "sys/fs", "sys/block", "etc", "mnt"]))
def test_the_same_bytes_in_all_files_of_a_kind_are_read_without_an_error(
    host: Path, content: bytes, kind: str
) -> None:
    sound = {name: text for name, text in everything().items() if name.startswith(kind)}
    lay_out(host, dict.fromkeys(sound, content))
    facts = facts_of(host)
    lay_out(host, {name: text.encode() for name, text in sound.items()})
    assert from_json(to_json(facts)) == facts


def test_directories_where_files_are_expected_are_read_without_an_error(tmp_path: Path) -> None:
    for name in everything():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    facts = facts_of(tmp_path)
    assert from_json(to_json(facts)) == facts


def test_the_largest_numbers_are_written_as_json(tmp_path: Path) -> None:
    largest = b"9" * 18
    lay_out(tmp_path, dict.fromkeys(everything(), largest))
    lay_out(tmp_path, {"sys/block/sda/stat": (largest + b" ") * 11})
    lay_out(tmp_path, {"proc/meminfo": b"MemTotal: " + largest + b" kB\n"})
    facts = facts_of(tmp_path)
    assert from_json(to_json(facts)) == facts


def test_an_empty_host_is_read_without_an_error(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert from_json(to_json(facts)) == facts
