"""What the facts of captured hosts mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.host.checks.hosts import commands, examined, facts_of, found, needs
from tests.unit.host.facts import trees
from tests.unit.host.facts.fake_nvml import FakeNvml
from tests.unit.host.facts.trees import block_device, mounts, slaves, write

from hearth.host.checks.check import Check, Examined, Level, WeightCacheSpace, worst
from hearth.host.checks.needs import ModelNeeds
from hearth.host.checks.registry import CHECKS, examine
from hearth.host.fast_cores import read_fast_cores


def judge(root: Path, models: str = "/") -> tuple[Check, ...]:
    return examine(examined(root, models)).checks


def test_a_host_that_tells_nothing_fails_nothing(tmp_path: Path) -> None:
    report = examine(examined(tmp_path))
    assert report.verdict in {Level.UNKNOWN, Level.OK}
    assert len({check.name for check in report.checks}) == len(report.checks)
    for check in report.checks:
        assert check.measured
        assert check.wanted
        assert check.why


def test_every_check_that_warns_or_fails_says_what_to_do(tmp_path: Path) -> None:
    files = trees.two_socket_server() | trees.wsl2() | trees.container_v2()
    files |= {
        "proc/self/limits": "Max open files 1024 2048 files\n",
        "proc/sys/fs/file-max": "100\n",
        "proc/sys/fs/file-nr": "99 0 100\n",
        "proc/sys/net/core/somaxconn": "128\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/sys/vm/max_map_count": "100\n",
        "proc/meminfo": "MemTotal: 9 kB\nSwapTotal: 10 kB\nSwapFree: 1 kB\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "proc/pressure/cpu": "some avg10=90 avg60=90 avg300=90 total=1\n",
        "proc/pressure/memory": "some avg10=90 avg60=90 avg300=90 total=1\n",
        "proc/pressure/io": "some avg10=90 avg60=90 avg300=90 total=1\n",
        "proc/stat": "cpu 1 0 0 1 98 0 0 0\n",
        "sys/block/sda/stat": "10 0 0 500 0 0 0 0\n",
    }
    files |= mounts("0:50 / nfs4 nas:/x")
    report = examine(Examined(facts_of(write(tmp_path, files)), needs(False, False, False)))
    bad = [check for check in report.checks if check.level in {Level.WARN, Level.FAIL}]
    assert len(bad) >= 17
    for check in bad:
        assert check.fixes, check.name


def test_sysctl_and_ulimit_are_named_for_what_is_too_low(tmp_path: Path) -> None:
    files = {
        "proc/sys/net/core/somaxconn": "128\n",
        "proc/self/limits": "Max open files 1024 524288 files\n",
    }
    checks = judge(write(tmp_path, files))
    assert "sudo sysctl -w net.core.somaxconn=4096" in commands(found(checks, "net.core.somaxconn"))
    files_check = found(checks, "open files")
    assert files_check.level is Level.OK  # hearth serve raises its own soft limit to that
    write(tmp_path, {"proc/self/limits": "Max open files 1024 2048 files\n"})
    files_check = found(judge(tmp_path), "open files")
    assert files_check.level is Level.WARN
    assert "sudo prlimit --pid $$ --nofile=:65536" in commands(files_check)
    assert "tune --only nofile --apply --persist" in commands(files_check)


@pytest.mark.parametrize(("most", "target"), [(100_000, 2_097_152), (9_000_000, 18_000_000)])
def test_a_limit_of_the_host_that_is_reached_is_never_lowered(
    tmp_path: Path, most: int, target: int
) -> None:
    files = {"proc/sys/fs/file-max": f"{most}\n", "proc/sys/fs/file-nr": f"{most - 9} 0 {most}\n"}
    check = found(judge(write(tmp_path, files)), "fs.file-max")
    assert check.level is Level.WARN
    assert f"fs.file-max={target}" in commands(check)
    assert ("tune --only file-max" in commands(check)) == (target == 2_097_152)


@pytest.mark.parametrize(("most", "level"), [(17 << 30, Level.WARN), (18 << 30, Level.OK)])
def test_packed_weights_need_room_where_they_are_kept(
    tmp_path: Path, most: int, level: Level
) -> None:
    space = WeightCacheSpace("/var/cache/weights", most)
    nine = needs(True, True, True)
    examined_ = Examined(facts_of(tmp_path), nine, weight_cache=space)
    check = found(examine(examined_).checks, "disk space")
    assert check.level is level
    assert "packed weights in /var/cache/weights" in check.measured
    fix = f"hearth serve org/name --weight-cache-bytes {18 << 30}"
    assert (fix in commands(check)) == (level is Level.WARN)
    unknown = examine(Examined(facts_of(tmp_path), nine)).checks
    assert found(unknown, "disk space").level is Level.UNKNOWN


def test_names_with_spaces_are_quoted_in_commands(tmp_path: Path) -> None:
    write(tmp_path, mounts("0:50 / nfs4 nas:/export"))
    spaced = replace(needs(False, True, True), name="/my models/x")
    checks = examine(Examined(facts_of(tmp_path, "/my models/x"), spaced)).checks
    assert "hearth serve '/my models/x' --quantize int8" in commands(found(checks, "plan"))
    disk = commands(found(checks, "model disk"))
    assert "hearth serve '/my models/x' --stage /SSD/models" in disk
    assert "cp -r --reflink=auto '/my models/x' /SSD/models/" in disk


def test_swappiness_is_shown_and_never_asked_for(tmp_path: Path) -> None:
    check = found(judge(write(tmp_path, {"proc/sys/vm/swappiness": "60"})), "vm.swappiness")
    assert check.level is Level.OK
    assert not check.fixes


@pytest.mark.parametrize(
    ("fits", "level"),
    [
        ((True, True, True), Level.OK),
        ((False, True, True), Level.WARN),
        ((False, False, True), Level.WARN),
        ((False, False, False), Level.FAIL),
    ],
)
def test_the_plan_gives_the_verdict(
    tmp_path: Path, fits: tuple[bool, bool, bool], level: Level
) -> None:
    report = examine(Examined(facts_of(tmp_path), needs(*fits)))
    plan = found(report.checks, "plan")
    assert plan.level is level
    assert "as stored 22.0 GiB" in plan.wanted
    if level is Level.WARN:
        assert f"--quantize {'int8' if fits[1] else 'int4'}" in commands(plan)
    if level is Level.FAIL:
        assert plan.why == "too large by 3 GiB"
        assert commands(plan) == "lower --max-model-len"


def test_a_model_that_cannot_be_served_fails_with_its_hint(tmp_path: Path) -> None:
    refused = ModelNeeds("x", "Odd", 0, (), refusal="no family file", refusal_hint="another one")
    plan = found(examine(Examined(facts_of(tmp_path), refused)).checks, "plan")
    assert (plan.level, plan.wanted, commands(plan)) == (
        Level.FAIL,
        "no family file",
        "another one",
    )


def test_a_model_of_transformers_is_not_judged_by_our_plan(tmp_path: Path) -> None:
    other = ModelNeeds("x", "OddForCausalLM", 0, (), needs_transformers=True)
    checks = examine(Examined(facts_of(tmp_path), other)).checks
    assert found(checks, "plan").level is Level.UNKNOWN
    assert "OddForCausalLM is served through transformers" in found(checks, "plan").wanted


def test_customary_figures_are_scaled_and_decide_nothing(tmp_path: Path) -> None:
    files = trees.topology({0: "0"}) | {"proc/meminfo": f"MemTotal: {8 << 20} kB\n"}
    facts = facts_of(write(tmp_path, files))
    without = examine(Examined(facts)).checks
    assert found(without, "memory size").level is Level.UNKNOWN
    assert "customary for a 9B model: 32 / 64 GB" in found(without, "memory size").wanted
    small = examine(Examined(facts, needs(True, True, True, parameters=4_500_000_000))).checks
    check = found(small, "memory size")
    assert check.level is Level.OK  # 8 GiB of 16: the plan says that it fits
    assert "customary for 4.5B parameters: 16 / 32 GB" in check.wanted
    assert "8 / 12 GB" in found(small, "GPU memory size").wanted


def test_a_rotating_disk_is_answered_by_staging_or_bcache(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="1", queue__read_ahead_kb="128")
    block_device(tmp_path, "sda1", "8:1", "sda")
    write(tmp_path, mounts("8:1 /models ext4 /dev/sda1"))
    checks = judge(tmp_path, "/models")
    disk = found(checks, "model disk")
    assert disk.level is Level.WARN
    assert disk.measured == "/models: ext4 on partition sda1 on disk sda (rotating)"
    for wanted in ("/SSD/models", "make-bcache", "sequential_cutoff", "writethrough"):
        assert wanted in commands(disk)
    readahead = found(checks, "readahead")
    assert readahead.level is Level.WARN
    assert "echo 4096 | sudo tee /sys/block/sda/queue/read_ahead_kb" in commands(readahead)
    assert "tune --only readahead --apply --models-dir /models\n" in commands(readahead)


def test_a_network_directory_is_answered_by_staging(tmp_path: Path) -> None:
    write(tmp_path, mounts("0:50 /models nfs4 nas:/export"))
    disk = found(judge(tmp_path, "/models"), "model disk")
    assert disk.level is Level.WARN
    assert "cp -r" in commands(disk)
    assert "bcache" not in commands(disk)


def test_an_nvme_disk_is_fine(tmp_path: Path) -> None:
    block_device(tmp_path, "nvme0n1", "259:0", queue__rotational="0", queue__read_ahead_kb="4096")
    write(tmp_path, mounts("259:0 / ext4 /dev/nvme0n1"))
    checks = judge(tmp_path)
    assert found(checks, "model disk").level is Level.OK
    assert found(checks, "readahead").level is Level.OK


def test_bcache_wants_no_cutoff_and_a_ups_for_writeback(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="1")
    block_device(
        tmp_path,
        "bcache0",
        "252:0",
        bcache__cache_mode="writethrough [writeback] none",
        bcache__state="clean",
        bcache__sequential_cutoff="4.0M",
    )
    slaves(tmp_path, "bcache0", "sda")
    write(tmp_path, mounts("252:0 / xfs /dev/bcache0"))
    checks = judge(tmp_path)
    cutoff, mode = found(checks, "bcache sequential cutoff"), found(checks, "bcache mode")
    assert cutoff.level is mode.level is Level.WARN
    assert "echo 0 | sudo tee /sys/block/bcache0/bcache/sequential_cutoff" in commands(cutoff)
    assert "UPS" in mode.wanted
    assert "UPS" in mode.why
    assert found(checks, "model disk").level is Level.OK
    sound = tmp_path / "sys/class/block/bcache0/bcache"
    write(sound, {"sequential_cutoff": "0\n", "cache_mode": "[writethrough] writeback none\n"})
    assert found(judge(tmp_path), "bcache mode").level is Level.OK
    assert found(judge(tmp_path), "bcache sequential cutoff").level is Level.OK


def test_bcache_without_a_cache_is_the_slow_disk_alone(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="1")
    block_device(
        tmp_path,
        "bcache0",
        "252:0",
        bcache__cache_mode="[writethrough] writeback none",
        bcache__state="no cache",
        bcache__sequential_cutoff="0",
    )
    slaves(tmp_path, "bcache0", "sda")
    write(tmp_path, mounts("252:0 / xfs /dev/bcache0"))
    checks = judge(tmp_path)
    assert found(checks, "model disk").level is Level.WARN
    mode = found(checks, "bcache mode")
    assert (mode.level, mode.measured) == (Level.WARN, "no cache")
    assert "/sys/block/bcache0/bcache/attach" in commands(mode)


def test_btrfs_reads_ahead_by_a_number_of_its_own(tmp_path: Path) -> None:
    block_device(tmp_path, "sda", "8:0", queue__rotational="0", queue__read_ahead_kb="128")
    write(tmp_path, mounts("0:31 / btrfs /dev/sda"))
    readahead = found(judge(tmp_path), "readahead")
    assert readahead.level is Level.UNKNOWN
    assert "/sys/block/sda" not in commands(readahead)
    assert "tee /sys/class/bdi/btrfs-*/read_ahead_kb" in commands(readahead)


def test_the_fast_cores_are_those_that_the_kernel_calls_so(tmp_path: Path) -> None:
    files = trees.topology({cpu: str(cpu) for cpu in range(4)})
    files["sys/devices/system/cpu/online"] = "0-3\n"
    for cpu, capacity in enumerate((1024, 1024, 380, 380)):  # the large ones first
        files[f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = f"{capacity}\n"
    assert found(judge(write(tmp_path, files)), "core kinds").level is Level.OK
    assert read_fast_cores(tmp_path, range(4)).cpus == {0, 1}


def test_two_nodes_and_two_kinds_of_cores_are_answered_by_binding(tmp_path: Path) -> None:
    checks = judge(write(tmp_path / "a", trees.two_socket_server()))
    assert "numactl --cpunodebind=0 --membind=0" in commands(found(checks, "NUMA"))
    assert "hearth serve MODEL --numa 0\n" in commands(found(checks, "NUMA"))
    assert "hearth serve MODEL --numa 1 --port 8001\n" in commands(found(checks, "NUMA"))
    assert found(checks, "governor").level is Level.WARN
    checks = judge(write(tmp_path / "b", trees.hybrid_laptop()))
    assert found(checks, "core kinds").level is Level.OK  # hearth takes the fast ones by itself
    files = trees.arm_board()
    assert found(judge(write(tmp_path / "c", files)), "core kinds").level is Level.OK
    nameless = {name: text for name, text in files.items() if not name.endswith("cpu_capacity")}
    check = found(judge(write(tmp_path / "d", nameless)), "core kinds")
    assert check.level is Level.WARN
    assert "taskset -c 4-7" in commands(check)


def test_a_quota_that_is_no_whole_number_is_warned_of(tmp_path: Path) -> None:
    # read_usable_cores counts this process's own CPUs, the quota is the tree's.
    check = found(judge(write(tmp_path, trees.container_v2())), "usable cores")
    assert check.level is Level.WARN


def test_wsl_shows_its_cap(tmp_path: Path) -> None:
    files = trees.wsl2() | {"proc/meminfo": f"MemTotal: {8 << 20} kB\n"}
    check = found(judge(write(tmp_path, files)), "WSL memory cap")
    assert check.level is Level.WARN
    assert "cap: 8.00 GiB" in check.measured
    assert ".wslconfig" in commands(check)


def test_wsl_1_is_answered_by_wsl_2(tmp_path: Path) -> None:
    files = {"proc/sys/kernel/osrelease": "4.4.0-19041-Microsoft\n"}
    check = found(judge(write(tmp_path, files)), "WSL memory cap")
    assert check.level is Level.FAIL
    assert commands(check) == 'wsl.exe --set-version "$WSL_DISTRO_NAME" 2'


def test_cards_in_use_and_in_narrow_slots_are_named(tmp_path: Path) -> None:
    checks = examine(examined(tmp_path, nvml=FakeNvml())).checks
    cards = found(checks, "GPUs")
    assert cards.level is Level.WARN
    assert "/usr/bin/python3 (4711)" in cards.measured
    assert found(checks, "PCIe width").measured == "2: ×8 of ×16"


def test_a_driver_that_was_updated_under_a_running_one_fails(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    broken = replace(facts.gpu.gpus, why="driver/library version mismatch")
    facts = replace(facts, gpu=replace(facts.gpu, gpus=broken))
    check = found(examine(Examined(facts)).checks, "GPUs")
    assert check.level is Level.FAIL
    assert "reboot" in commands(check)


def test_no_gpu_is_fine(tmp_path: Path) -> None:
    assert found(judge(tmp_path), "GPUs").level is Level.OK


def test_one_slow_moment_is_no_warning_and_a_lasting_one_is(tmp_path: Path) -> None:
    files = {
        "proc/stat": "cpu 1 0 0 1 98 0 0 0\n",
        "proc/pressure/io": "some avg10=2.00 avg60=1.00 avg300=0 total=1\n",
        "sys/block/sda/stat": "3 0 0 500 0 0 0 0\n",
    }
    checks = judge(write(tmp_path, files))
    assert found(checks, "I/O wait").level is Level.OK
    assert found(checks, "disk answer time").level is Level.OK
    files["proc/pressure/io"] = "some avg10=50.00 avg60=1.00 avg300=0 total=1\n"
    files["sys/block/sda/stat"] = "30 0 0 5000 0 0 0 0\n"
    checks = judge(write(tmp_path, files))
    assert found(checks, "I/O wait").level is Level.WARN
    assert found(checks, "disk answer time").level is Level.WARN


def test_the_worst_level_is_the_verdict() -> None:
    def at(level: Level) -> Check:
        return Check("a", "b", level, "", "", "")

    assert worst(()) is Level.OK
    assert worst((at(Level.OK), at(Level.UNKNOWN))) is Level.UNKNOWN
    assert worst((at(Level.WARN), at(Level.UNKNOWN))) is Level.WARN
    assert worst((at(Level.FAIL), at(Level.WARN))) is Level.FAIL


def test_every_check_stands_in_the_docs() -> None:
    text = (Path(__file__).parents[4] / "docs/doctor.md").read_text(encoding="utf-8")
    for function in CHECKS:
        assert function.__module__.rpartition(".")[2] in text
