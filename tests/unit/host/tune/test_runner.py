"""Applying and rolling back, on a machine laid out as files."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from tests.unit.host.tune.crashes import journal_of
from tests.unit.host.tune.trees import ALL, THP, FakeKernel, lay_out, plan_of, snapshot

from hearth.core.errors import HostError, JournalError, PrivilegeError
from hearth.host.tune.journal import Journal, open_journal, read_entries
from hearth.host.tune.places import Change, Kind, Places
from hearth.host.tune.runner import Outcome, Restored, apply_plan, require_root, roll_back

SOMAXCONN = "proc/sys/net/core/somaxconn"
SWAPPINESS = "proc/sys/vm/swappiness"


def apply(places: Places, chosen: frozenset[str] = ALL, *, persist: bool = False) -> list[Outcome]:
    plan = plan_of(places, chosen, persist=persist)
    with open_journal(journal_of(places.root)) as journal:
        return apply_plan(plan, places, journal, persist=persist)


def restore(places: Places, *, force: bool = False) -> list[Restored]:
    with open_journal(journal_of(places.root)) as journal:
        return roll_back(places, journal, force=force)


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path, without="")
    plan = plan_of(kernel, persist=True)
    assert len(plan.changes()) >= 10
    assert snapshot(tmp_path, without="") == before


@pytest.mark.parametrize("persist", [False, True])
def test_every_action_is_applied_and_taken_back_to_the_byte(tmp_path: Path, persist: bool) -> None:
    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    outcomes = apply(kernel, persist=persist)
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert {outcome.name for outcome in outcomes} >= ALL
    assert kernel.read("value", SOMAXCONN) == "65535"
    assert kernel.read("choice", f"{THP}/enabled") == "madvise"
    assert (tmp_path / "etc/sysctl.d/60-hearth.conf").exists() == persist
    assert plan_of(kernel, persist=persist).changes() == []
    assert {found.state for found in restore(kernel)} == {"restored"}
    assert snapshot(tmp_path) == before


def test_rolling_back_twice_is_harmless(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel)
    restore(kernel)
    kernel.write("value", SWAPPINESS, "42")
    assert restore(kernel) == []
    assert kernel.read("value", SWAPPINESS) == "42"


def test_changes_are_taken_back_in_reverse_order(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel, frozenset({"swappiness", "somaxconn"}))
    kernel.write("value", SWAPPINESS, "60")
    apply(kernel, frozenset({"swappiness"}))
    found = restore(kernel)
    assert [(item.change.path, item.state) for item in found] == [
        (SWAPPINESS, "restored"),
        (SWAPPINESS, "already"),
        (SOMAXCONN, "restored"),
    ]


def test_what_somebody_has_changed_since_is_left_alone_unless_forced(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel, frozenset({"swappiness", "somaxconn"}))
    kernel.write("value", SWAPPINESS, "33")
    states = {found.change.action: found for found in restore(kernel)}
    assert states["somaxconn"].state == "restored"
    assert states["swappiness"].state == "kept"
    assert "somebody has changed it since, to '33'" in states["swappiness"].reason
    assert kernel.read("value", SWAPPINESS) == "33"
    assert [found.state for found in restore(kernel)] == ["kept"]
    assert [found.state for found in restore(kernel, force=True)] == ["restored"]
    assert kernel.read("value", SWAPPINESS) == "60"


def test_a_file_that_somebody_has_edited_is_left_alone_and_its_directory_too(
    tmp_path: Path,
) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel, frozenset({"thp"}), persist=True)
    path = tmp_path / "etc/tmpfiles.d/60-hearth.conf"
    path.write_text(path.read_text() + "d /run/mine\n")
    kept = {found.change.kind for found in restore(kernel) if found.state == "kept"}
    assert kept == {"file", "directory"}
    restore(kernel, force=True)
    assert not path.parent.exists()


def test_a_directory_that_somebody_else_uses_stays_even_when_forced(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel, frozenset({"thp"}), persist=True)
    (tmp_path / "etc/tmpfiles.d/site.conf").write_text("")
    found = {item.change.path: item.state for item in restore(kernel, force=True)}
    assert found["etc/tmpfiles.d"] == "kept"
    assert (tmp_path / "etc/tmpfiles.d/site.conf").exists()


def test_a_setting_that_is_gone_is_nothing_to_put_back(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    apply(kernel, frozenset({"readahead"}))
    (tmp_path / "sys/devices/pci0/block/vda/queue/read_ahead_kb").unlink()
    assert [found.state for found in restore(kernel)] == ["gone"]
    assert restore(kernel) == []


class Refusing(FakeKernel):
    """A kernel that refuses to write paths that end in one of these words."""

    words: tuple[str, ...] = ()

    def write(self, kind: Kind, path: str, text: str | None) -> None:
        if path.endswith(self.words):
            raise OSError(errno.EPERM, "Operation not permitted")
        super().write(kind, path, text)


def refusing(root: Path, *words: str) -> Refusing:
    lay_out(root)
    kernel = Refusing(root)
    kernel.words = words
    return kernel


def test_an_action_that_fails_halfway_is_undone_and_the_others_stay(tmp_path: Path) -> None:
    kernel = refusing(tmp_path, "policy1/scaling_governor")
    chosen = frozenset({"governor", "swappiness"})
    states = {o.name: o for o in apply(kernel, chosen, persist=True)}
    assert states["governor"].state == "undone"
    assert "Operation not permitted" in states["governor"].reason
    policy0 = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
    assert kernel.read("value", policy0) == "schedutil"
    assert kernel.read("value", SWAPPINESS) == "10"
    # What failed is not written for the next boot either.
    assert not (tmp_path / "etc/tmpfiles.d").exists()
    assert (tmp_path / "etc/sysctl.d/60-hearth.conf").exists()
    assert [found.change.action for found in restore(kernel) if found.change.kind == "value"] == [
        "swappiness"
    ]


def test_a_kernel_that_grants_less_than_asked_is_a_failure_that_is_undone(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    kernel.max_pages = 3
    (outcome,) = apply(kernel, frozenset({"hugepages"}))
    assert outcome.state == "undone"
    assert "holds '3' after '4' was written" in outcome.reason
    assert kernel.read("count", "proc/sys/vm/nr_hugepages") == "0"


def test_what_cannot_be_undone_is_said_and_stays_in_the_journal(tmp_path: Path) -> None:
    class Stubborn(FakeKernel):
        def write_kernel(self, where: Path, text: str) -> None:
            if text == "60":
                raise OSError(errno.EPERM, "Operation not permitted")
            super().write_kernel(where, "11")

    lay_out(tmp_path)
    (outcome,) = apply(Stubborn(tmp_path), frozenset({"swappiness"}))
    assert outcome.state == "stuck"
    assert "cannot be put back: Operation not permitted" in outcome.reason
    assert [entry.state for entry in read_entries(journal_of(tmp_path))] == ["begun"]
    (found,) = restore(Stubborn(tmp_path), force=True)
    assert found.state == "failed"


def test_one_change_that_cannot_be_undone_does_not_keep_its_siblings(tmp_path: Path) -> None:
    governor = "sys/devices/system/cpu/cpufreq/policy{}/scaling_governor"
    policies = {governor.format(n): "schedutil\n" for n in range(3)}
    offered = {p.replace("governor", "available_governors"): "performance\n" for p in policies}

    class Odd(FakeKernel):
        def write_kernel(self, where: Path, text: str) -> None:
            third, second = (where.parent.name == f"policy{n}" for n in (2, 1))
            if third or (second and text == "schedutil"):
                raise OSError(errno.EIO, "Input/output error")
            super().write_kernel(where, text)

    lay_out(tmp_path, policies | offered)
    (outcome,) = apply(Odd(tmp_path), frozenset({"governor"}))
    assert outcome.state == "stuck"
    assert outcome.reason.count("Input/output error") == 2  # the write, and what is stuck
    values = [(tmp_path / path).read_text().strip() for path in policies]
    assert values == ["schedutil", "performance", "schedutil"]
    assert [entry.state for entry in read_entries(journal_of(tmp_path))] == [
        "undone",
        "done",
        "undone",
    ]


def test_one_change_that_cannot_be_put_back_does_not_keep_the_others(tmp_path: Path) -> None:
    apply(lay_out(tmp_path), frozenset({"swappiness", "somaxconn", "thp"}))
    kernel = Refusing(tmp_path)
    kernel.words = ("swappiness",)
    assert [found.state for found in restore(kernel)] == ["restored", "failed", "restored"]
    assert [found.state for found in restore(FakeKernel(tmp_path))] == ["restored"]


def test_a_place_that_changed_after_the_plan_is_not_overwritten(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    plan = plan_of(kernel, frozenset({"swappiness"}))
    kernel.write("value", SWAPPINESS, "1")
    with open_journal(journal_of(tmp_path)) as journal:
        (outcome,) = apply_plan(plan, kernel, journal, persist=False)
    assert (outcome.state, "somebody else" in outcome.reason) == ("undone", True)
    assert outcome.changes == ()
    assert kernel.read("value", SWAPPINESS) == "1"
    assert read_entries(journal_of(tmp_path)) == []


def test_nothing_is_changed_that_the_journal_could_not_take(tmp_path: Path) -> None:
    class Full(Journal):
        def append(self, line: dict[str, Any]) -> None:
            raise JournalError("no space")

    kernel = lay_out(tmp_path)
    before = snapshot(tmp_path)
    plan = plan_of(kernel, persist=True)
    with (
        open_journal(journal_of(tmp_path), kind=Full) as journal,
        pytest.raises(JournalError),
    ):
        apply_plan(plan, kernel, journal, persist=True)
    assert snapshot(tmp_path) == before


def test_a_pool_that_grew_halfway_when_the_crash_came_is_ours(tmp_path: Path) -> None:
    kernel = lay_out(tmp_path)
    change = Change("hugepages", "count", "proc/sys/vm/nr_hugepages", "0", "8")
    with open_journal(journal_of(tmp_path)) as journal:
        number = journal.begin(change)
        kernel.write("count", change.path, "5")
    assert [found.state for found in restore(kernel)] == ["restored"]
    with open_journal(journal_of(tmp_path)) as journal:
        number = journal.begin(change)
        journal.mark(number, "done")
        kernel.write("count", change.path, "5")
    # After the mark it held 8, so somebody has changed it.
    assert [found.state for found in restore(kernel)] == ["kept"]


def test_who_is_not_root_is_refused_with_the_commands_to_run() -> None:
    with pytest.raises(PrivilegeError, match="root only") as caught:
        require_root(1000, ["sudo sysctl -w vm.swappiness=10"])
    assert "sudo sysctl -w vm.swappiness=10" in str(caught.value.hint)
    require_root(0, [])


def test_no_other_place_is_ever_written(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no place that hearth changes"):
        Places(tmp_path).write("file", "etc/passwd", "")


def test_every_line_is_on_disk_before_what_it_announces(tmp_path: Path, syncs: list[int]) -> None:
    order: list[str] = []

    class Noting(Journal):
        def append(self, line: dict[str, Any]) -> None:
            num_syncs = len(syncs)
            super().append(line)
            assert len(syncs) > num_syncs
            order.append(str(line.get("state", "begun")))

    class NotingKernel(FakeKernel):
        def write(self, kind: Kind, path: str, text: str | None) -> None:
            order.append("written")
            super().write(kind, path, text)

    lay_out(tmp_path)
    kernel = NotingKernel(tmp_path)
    plan = plan_of(kernel, frozenset({"governor", "thp"}), persist=True)
    with open_journal(journal_of(tmp_path), kind=Noting) as journal:
        apply_plan(plan, kernel, journal, persist=True)
        assert order == ["begun", "written", "done"] * (len(order) // 3)
        order.clear()
        roll_back(kernel, journal)
    assert order == ["written", "undone"] * (len(order) // 2)
