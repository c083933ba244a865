"""What each setting should be, on machines laid out as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.host.tune.trees import (
    FILES,
    POLICY,
    READ_AHEAD,
    THP,
    FakeKernel,
    lay_out,
    snapshot,
    view_of,
)

from hearth.host.tune.actions import Check, HostView
from hearth.host.tune.catalog import ACTIONS, BY_NAME
from hearth.host.tune.journal import open_journal
from hearth.host.tune.places import Places
from hearth.host.tune.runner import apply_changes, roll_back


def check(root: Path, name: str, changed: dict[str, str] | None = None) -> Check:
    return BY_NAME[name].check(view_of(lay_out(root, changed)))


def moves(found: Check) -> list[tuple[str, str | None, str | None]]:
    return [(change.path, change.before, change.after) for change in found.changes]


def test_what_harms_or_does_nothing_is_not_applied_by_default_and_says_why() -> None:
    against = {action.name: action.against for action in ACTIONS if not action.is_default}
    assert set(against) == {"file-max", "swappiness", "hugepages"}
    assert "maps weights from files" in against["swappiness"]
    assert "MAP_HUGETLB does not work" in against["hugepages"]


@pytest.mark.parametrize(
    ("name", "path", "values"),
    [
        ("somaxconn", "proc/sys/net/core/somaxconn", ("4096", "65535", "100000")),
        ("file-max", "proc/sys/fs/file-max", ("100000", "2097152", "9223372036854775807")),
        ("swappiness", "proc/sys/vm/swappiness", ("60", "10", "1")),
        ("readahead", READ_AHEAD, ("128", "4096", "8192")),
    ],
)
def test_a_number_moves_towards_its_target_only(
    tmp_path: Path, name: str, path: str, values: tuple[str, str, str]
) -> None:
    short, target, beyond = values
    kernel = lay_out(tmp_path)
    view = view_of(kernel)
    found = BY_NAME[name].check(view)
    assert (found.state, moves(found)) == ("change", [(path, short, target)])
    (line,) = found.lines
    assert line.text.endswith(target)
    for value, lines in ((target, (line,)), (beyond, ())):
        kernel.write_kernel(tmp_path / path, value)
        reached = BY_NAME[name].check(view)
        # What is further must not be taken back at the next boot either.
        assert (reached.state, reached.changes, reached.lines) == ("ok", (), lines)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_machine_without_the_setting_says_so(tmp_path: Path, name: str) -> None:
    view = replace(view_of(Places(tmp_path)), hugepages_bytes=1, hard_open_files=1 << 20)
    found = BY_NAME[name].check(view)
    assert found.changes == ()
    if name != "nofile":
        assert (found.state, len(found.notes)) == ("absent", 1)


@pytest.mark.parametrize("name", ["somaxconn", "file-max", "swappiness", "hugepages", "readahead"])
@pytest.mark.parametrize("text", ["", "many", "1 2"])
def test_what_is_no_number_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    path = {
        "somaxconn": "proc/sys/net/core/somaxconn",
        "file-max": "proc/sys/fs/file-max",
        "swappiness": "proc/sys/vm/swappiness",
        "hugepages": "proc/sys/vm/nr_hugepages",
        "readahead": "sys/devices/pci0/block/vda/queue/read_ahead_kb",
    }[name]
    view = replace(view_of(lay_out(tmp_path, {path: text})), hugepages_bytes=1)
    found = BY_NAME[name].check(view)
    assert (found.state, found.changes) == ("locked", ())
    assert "is not a number" in found.notes[0]


def open_files(root: Path, hard: int, first: str = FILES["proc/1/limits"]) -> Check:
    view = view_of(lay_out(root, {"proc/1/limits": first}))
    return BY_NAME["nofile"].check(replace(view, hard_open_files=hard))


def test_the_limit_of_open_files_is_for_files_only_and_says_why(tmp_path: Path) -> None:
    found = open_files(tmp_path, 4096)
    assert (found.state, found.changes) == ("persist", ())
    assert [line.text for line in found.lines] == [
        "LimitNOFILE=65536",
        "* hard nofile 65536",
        "root hard nofile 65536",
    ]
    for command in ("systemctl daemon-reload", "sudo prlimit --pid $$ --nofile=:65536"):
        assert command in found.notes[0]


def test_nobodys_limit_of_open_files_is_lowered(tmp_path: Path) -> None:
    first = "Max open files            1024    524288    files\n"
    texts = [line.text for line in open_files(tmp_path, 4096, first).lines]
    assert texts[1:] == ["* hard nofile 524288", "root hard nofile 524288"]


@pytest.mark.parametrize(
    ("text", "hard"),
    [
        ("* hard nofile 1048576\n", 1048576),
        ("root - nofile 200000 # by hand\n", 200000),
        ("* hard nofile unlimited\n", 2000000),
        ("@dev hard nofile 300000\n* soft nofile 300000\n#* hard nofile 300000\n", 65536),
    ],
)
@pytest.mark.parametrize("name", ["limits.conf", "limits.d/20-site.conf"])
def test_what_other_files_give_everybody_is_not_lowered(
    tmp_path: Path, name: str, text: str, hard: int
) -> None:
    files = {f"etc/security/{name}": text, "proc/sys/fs/nr_open": "2000000\n"}
    found = BY_NAME["nofile"].check(replace(view_of(lay_out(tmp_path, files))))
    assert found.lines[1].text == f"* hard nofile {hard}"


def test_no_limit_is_written_that_would_end_a_login(tmp_path: Path) -> None:
    """The kernel takes none above nr_open, and pam_limits lets nobody in without it."""
    view = view_of(lay_out(tmp_path, {"proc/sys/fs/nr_open": "20000\n"}))
    assert BY_NAME["nofile"].check(view).lines[1].text == "* hard nofile 20000"
    found = BY_NAME["nofile"].check(replace(view, hard_open_files=20000))
    assert (found.state, found.lines) == ("ok", ())
    assert "takes no more than 20000" in found.notes[0]


@pytest.mark.parametrize("hard", [65536, 1 << 20, -1])
def test_a_hard_limit_that_is_large_enough_stays(tmp_path: Path, hard: int) -> None:
    assert open_files(tmp_path, hard).state == "ok"
    assert open_files(tmp_path / "other", hard).lines == ()


@pytest.mark.parametrize(
    ("file", "former", "target"),
    [
        ("enabled", "always madvise [never]", "madvise"),
        ("enabled", "always [madvise] never", None),
        ("enabled", "[always] madvise never", None),
        ("defrag", "always defer defer+madvise madvise [never]", "madvise"),
        ("defrag", "always [defer] defer+madvise madvise never", "defer+madvise"),
        ("defrag", "[always] defer defer+madvise madvise never", None),
        ("defrag", "always defer defer+madvise [madvise] never", None),
    ],
)
def test_huge_pages_are_given_to_who_asks_for_them(
    tmp_path: Path, file: str, former: str, target: str | None
) -> None:
    name = "thp" if file == "enabled" else "thp-defrag"
    found = check(tmp_path, name, {f"{THP}/{file}": former + "\n"})
    assert [after for _, _, after in moves(found)] == ([] if target is None else [target])


def test_the_pool_of_huge_pages_holds_the_bytes_that_were_asked_for(tmp_path: Path) -> None:
    view = view_of(lay_out(tmp_path))
    assert BY_NAME["hugepages"].check(view).changes == ()
    found = BY_NAME["hugepages"].check(replace(view, hugepages_bytes=(8 << 20) + 1))
    assert moves(found) == [("proc/sys/vm/nr_hugepages", "0", "5")]


def test_a_pool_that_leaves_no_memory_for_others_is_refused(tmp_path: Path) -> None:
    view = replace(view_of(lay_out(tmp_path)), hugepages_bytes=15 << 30)
    found = BY_NAME["hugepages"].check(view)
    assert (found.state, found.changes) == ("locked", ())
    assert "at most 12.0 GiB" in found.notes[0]


NODE = "sys/devices/system/node/node{}"
NODE_POOL = NODE + "/hugepages/hugepages-2048kB/nr_hugepages"


def two_nodes(*, pages: tuple[int, int]) -> dict[str, str]:
    """Node 0 has three times the free memory of node 1."""
    files: dict[str, str] = {"proc/sys/vm/nr_hugepages": f"{sum(pages)}\n"}
    for number, free in enumerate((3 << 20, 1 << 20)):
        files[f"{NODE.format(number)}/cpulist"] = f"{number}\n"
        files[f"{NODE.format(number)}/meminfo"] = f"Node {number} MemFree: {free} kB\n"
        files[NODE_POOL.format(number)] = f"{pages[number]}\n"
    return files


def test_each_node_keeps_its_own_part_of_the_pool(tmp_path: Path) -> None:
    """The total, written back, would spread over both what was on one."""
    kernel = lay_out(tmp_path, two_nodes(pages=(1, 7)))
    before = snapshot(tmp_path)
    view = replace(view_of(kernel), hugepages_bytes=18 * 2 << 20)
    found = BY_NAME["hugepages"].check(view)
    assert moves(found) == [
        (NODE_POOL.format(0), "1", "9"),
        (NODE_POOL.format(1), "7", "9"),
    ]
    assert [line.text for line in found.lines] == ["vm.nr_hugepages = 18"]
    with open_journal(tmp_path / "var/journal") as journal:
        outcome = apply_changes(BY_NAME["hugepages"], found.changes, kernel, journal)
        assert outcome.state == "done"
        roll_back(kernel, journal)
    assert snapshot(tmp_path) == before


def test_the_pool_says_whose_size_it_is(tmp_path: Path) -> None:
    view = replace(view_of(lay_out(tmp_path)), hugepages_bytes=5 << 20, hugepages_note="the plan")
    found = BY_NAME["hugepages"].check(view)
    assert found.notes == ("the plan", "5.00 MiB are 3 pages of 2.00 MiB")


def test_every_policy_that_offers_performance_gets_it(tmp_path: Path) -> None:
    extra = {
        POLICY.format(2, "governor"): "performance\n",
        POLICY.format(2, "available_governors"): "performance powersave\n",
        POLICY.format(10, "governor"): "userspace\n",
        POLICY.format(10, "available_governors"): "userspace\n",
    }
    found = check(tmp_path, "governor", extra)
    assert [(before, after) for _, before, after in moves(found)] == [
        ("schedutil", "performance"),
        ("powersave", "performance"),
    ]
    assert len(found.lines) == 3


EPP = "sys/devices/system/cpu/cpufreq/policy0/energy_performance_{}"


def test_the_energy_preference_comes_back_with_the_governor(tmp_path: Path) -> None:
    class Pstate(FakeKernel):
        """As intel_pstate: `performance` takes the preference with it and locks it."""

        def write_kernel(self, where: Path, text: str) -> None:
            governor = where.with_name("scaling_governor")
            if where.name == "energy_performance_preference":
                if governor.read_text().strip() == "performance" != text:
                    raise OSError(16, "Device or resource busy")
            elif where == self.root / POLICY.format(0, "governor") and text == "performance":
                (self.root / EPP.format("preference")).write_text("performance\n")
            super().write_kernel(where, text)

    files = {
        EPP.format("preference"): "balance_power\n",
        EPP.format("available_preferences"): "default performance balance_power power\n",
    }
    lay_out(tmp_path, files)
    kernel = Pstate(tmp_path)
    before = snapshot(tmp_path)
    found = BY_NAME["governor"].check(view_of(kernel))
    with open_journal(tmp_path / "var/journal") as journal:
        outcome = apply_changes(BY_NAME["governor"], found.changes, kernel, journal)
        assert outcome.state == "done", outcome.reason
        assert {restored.state for restored in roll_back(kernel, journal)} == {"restored"}
    assert snapshot(tmp_path) == before


def test_a_speed_that_somebody_sets_by_hand_is_left_alone(tmp_path: Path) -> None:
    extra = {
        POLICY.format(0, "governor"): "userspace\n",
        POLICY.format(0, "available_governors"): "performance userspace\n",
    }
    found = check(tmp_path, "governor", extra)
    assert moves(found) == [(POLICY.format(1, "governor"), "powersave", "performance")]
    assert "policy0 is left alone" in found.notes[0]


def read_ahead(view: HostView) -> Check:
    return BY_NAME["readahead"].check(view)


def test_the_readahead_of_a_partition_is_that_of_its_disk(tmp_path: Path) -> None:
    view = view_of(lay_out(tmp_path))
    for number in ((8, 1), (8, 0)):
        assert moves(read_ahead(replace(view, device=number))) == [(READ_AHEAD, "128", "4096")]


def test_a_network_file_system_has_one_of_its_own_that_no_file_can_name(tmp_path: Path) -> None:
    path = "sys/class/bdi/0:45/read_ahead_kb"
    view = view_of(lay_out(tmp_path, {path: "128\n"}))
    found = read_ahead(replace(view, device=(0, 45)))
    assert moves(found) == [(path, "128", "4096")]
    assert found.lines == ()
    assert any("not kept by --persist" in note for note in found.notes)


@pytest.mark.parametrize("device", [(0, 99), None])
def test_an_overlay_has_none(tmp_path: Path, device: tuple[int, int] | None) -> None:
    found = read_ahead(replace(view_of(lay_out(tmp_path)), device=device))
    assert found.state == "absent"
    assert "/models" in found.notes[0]


class _ReadOnly(FakeKernel):
    def is_writable(self, path: str) -> bool:
        return False


def test_a_container_whose_settings_are_read_only_says_where_to_change_them(
    tmp_path: Path,
) -> None:
    lay_out(tmp_path)
    found = BY_NAME["somaxconn"].check(view_of(_ReadOnly(tmp_path)))
    assert (found.state, found.changes) == ("locked", ())
    assert "change it on the host" in found.notes[0]
