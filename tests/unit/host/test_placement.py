"""Which CPU each thread gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.host.test_cpu import topology
from tests.unit.host.test_memory import write

from hearth.core.errors import ConfigError
from hearth.host.placement import format_cpus, parse_cpus, place_threads


def test_a_thread_for_every_core_is_bound_to_one_hardware_thread_of_each(tmp_path: Path) -> None:
    placement = place_threads("auto", None, write(tmp_path, topology(4)), range(8))
    assert (placement.num_threads, placement.cpus) == (4, (0, 1, 2, 3))
    assert placement.bind_reason == "each thread has a core of its own"


def test_the_affinity_mask_chooses_the_hardware_thread(tmp_path: Path) -> None:
    placement = place_threads("auto", None, write(tmp_path, topology(4)), {4, 2, 6, 7})
    assert placement.cpus == (2, 4, 7)


@pytest.mark.parametrize(
    ("threads", "reason"),
    [
        (3, "3 of 4 cores: Linux moves the threads to free ones"),
        (5, "there are 5 threads for 4 cores"),
    ],
)
def test_fewer_or_more_threads_than_cores_are_left_to_linux(
    tmp_path: Path, threads: int, reason: str
) -> None:
    placement = place_threads("auto", threads, write(tmp_path, topology(4)), range(8))
    assert (placement.num_threads, placement.cpus) == (threads, ())
    assert placement.bind_reason == reason


def test_a_quota_below_the_cores_leaves_the_threads_to_linux(tmp_path: Path) -> None:
    files = {
        **topology(4),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
    }
    placement = place_threads("auto", None, write(tmp_path, files), range(8))
    assert (placement.num_threads, placement.cpus) == (2, ())


def test_one_thread_is_not_bound(tmp_path: Path) -> None:
    assert place_threads("auto", None, write(tmp_path, topology(1)), range(2)).cpus == ()


def test_none_binds_nothing(tmp_path: Path) -> None:
    placement = place_threads("none", None, write(tmp_path, topology(4)), range(8))
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
