"""`hearth tune` as it is called: what it refuses, and that it changes nothing unasked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_commands import hearth
from tests.unit.host.tune.crashes import journal_of
from tests.unit.host.tune.trees import ALL, FakeKernel, lay_out, plan_of, snapshot, view_of

from hearth.cli import tune as command
from hearth.cli import tune_report as report
from hearth.cli.model_needs import read_needs
from hearth.cli.settings import BUILT_IN_DIR
from hearth.cli.tune import Order, choose, own_command, pool_size
from hearth.core.errors import ConfigError, PrivilegeError
from hearth.host.tune.journal import read_entries
from hearth.host.tune.places import SYSCTL_FILE, Change, Places
from hearth.host.tune.runner import Outcome

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rollback", "--apply"], "--rollback does not go with"),
        (["--apply", "--measure"], "two things"),
        (["--force"], "--force belongs to --rollback"),
        (["--only", "swapiness"], "did you mean swappiness?"),
        (["--with", "hugepages"], "add --hugepages-bytes"),
        (["--only", "thp", "--hugepages-bytes", "1G"], "does not go with --only"),
        (["--hugepages-bytes", "lots"], "permitted"),
    ],
)
def test_flags_that_cannot_be_are_one_message(flags: list[str], said: str) -> None:
    found = hearth("tune", *flags)
    assert (found.returncode, "Traceback" in found.stderr) == (2, False), found.stderr
    assert said in found.stderr


def test_nothing_that_changes_the_machine_has_a_variable() -> None:
    text = hearth("tune", "--help").stdout
    for flag in ("APPLY", "PERSIST", "MEASURE", "ROLLBACK", "FORCE"):
        assert f"HEARTH_TUNE_{flag}" not in text
    assert "HEARTH_TUNE_ONLY" in text


def test_the_defaults_are_what_helps_and_names_add_or_replace() -> None:
    defaults = choose([], [], None)
    assert {"somaxconn", "thp", "nofile"} <= defaults
    assert not defaults & {"swappiness", "file-max", "hugepages"}
    assert choose([], ["swappiness"], None) == defaults | {"swappiness"}
    assert choose(["swappiness"], [], None) == {"swappiness"}
    assert choose([], [], 1 << 30) == defaults | {"hugepages"}
    with pytest.raises(ConfigError, match="needs a size"):
        choose(["hugepages"], [], None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rollback", "MODEL"], "takes no MODEL"),
        (["--max-model-len", "8K"], "needs a MODEL"),
        (["./no/such"], "no directory"),
    ],
)
def test_a_model_that_cannot_be_meant_is_one_message(flags: list[str], said: str) -> None:
    found = hearth("tune", *flags)
    assert (found.returncode in {2, 3}, "Traceback" in found.stderr) == (True, False)
    assert said in found.stderr


def test_the_plan_of_a_model_sizes_the_pool_and_nobody_takes_it_unasked() -> None:
    model = str(BUILT_IN_DIR)
    needs = read_needs(model, 2048)
    pool = pool_size(model, 2048, None)
    assert pool.num_bytes == needs.schemes[0].needed_bytes
    assert "weights as stored, a context of 2,048 tokens" in pool.note
    assert pool_size(model, 2048, 1 << 30).num_bytes == 1 << 30
    assert pool_size(None, None, None).num_bytes is None
    assert "hugepages" not in choose([], [], None, has_model=True)
    assert "hugepages" in choose([], ["hugepages"], None, has_model=True)


def test_the_size_of_the_plan_is_shown_and_applied_where_it_is_asked_for() -> None:
    flags = ("tune", str(BUILT_IN_DIR), "--max-model-len", "1K", "--json")
    found = json.loads(hearth(*flags).stdout)
    (item,) = (item for item in found["settings"] if item["name"] == "hugepages")
    assert (item["is_chosen"], item["is_default"]) == (False, False)
    assert "the plan of" in " ".join(item["notes"])
    page_bytes = int(re.search(r"Hugepagesize:\s+(\d+)", _meminfo())[1]) << 10  # type: ignore[index]  # every kernel here has it
    needed = read_needs(str(BUILT_IN_DIR), 1024).schemes[0].needed_bytes
    assert int(item["then"]) == -(-needed // page_bytes) or int(item["now"]) * page_bytes > needed
    again = json.loads(hearth(*flags, "--with", "hugepages").stdout)
    (item,) = (item for item in again["settings"] if item["name"] == "hugepages")
    assert item["is_chosen"]


def _meminfo() -> str:
    return Path("/proc/meminfo").read_text(encoding="utf-8")


def test_a_model_without_a_plan_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OddForCausalLM"]}')
    pool = pool_size(str(tmp_path), None, None)
    assert pool.num_bytes is None
    assert "no plan of" in pool.note
    found = hearth("tune", str(tmp_path), "--with", "hugepages")
    assert found.returncode == 2
    assert "hugepages needs a size: no plan of" in found.stderr


def test_as_root_the_same_is_called_whatever_sudo_makes_of_home_and_environment() -> None:
    environment = {"HEARTH_TUNE_ONLY": "readahead", "HEARTH_MODEL": "x", "HOME": "/home/jane"}
    words = ["/usr/bin/hearth", "tune", "--apply"]
    models = Path("/home/jane/my models")
    assert own_command(words, environment, models) == (
        "sudo env HEARTH_TUNE_ONLY=readahead /usr/bin/hearth tune --apply "
        "--models-dir '/home/jane/my models'"
    )
    named = [*words, "--models-dir=/m"]
    assert own_command(named, {}, models) == "sudo /usr/bin/hearth tune --apply --models-dir=/m"
    variable = {"HEARTH_TUNE_MODELS_DIR": "models"}  # as it was resolved here
    assert own_command(words, variable, Path("/m")).endswith("tune --apply --models-dir /m")
    assert own_command(["x", "tune", "--rollback"], {}).endswith("-m hearth.cli tune --rollback")


def test_what_was_undone_needs_no_way_back() -> None:
    outcomes = [Outcome("thp", "undone", (Change("thp", "choice", THP, "never", "madvise"),), "no")]
    assert report.outcome_lines(outcomes, Path("/j")) == ["failed: thp: no (as it was before)"]


def test_a_dry_run_on_this_machine_changes_nothing_and_is_json(tmp_path: Path) -> None:
    found = hearth("tune", "--json", "--persist", "--journal", str(tmp_path / "j"))
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["schema"] == 1
    assert {item["name"] for item in answer["settings"]} == ALL
    assert list(tmp_path.iterdir()) == []


def run(capsys: pytest.CaptureFixture[str], places: Places, code: int = 0, **asked: Any) -> str:
    order = Order(asked.pop("chosen", ALL - {"hugepages"}), journal_of(places.root), **asked)
    view = view_of(places)
    found = command._roll_back(order, places) if order.rollback else command._run(order, view)
    text = capsys.readouterr().out
    assert found == code, text
    return text


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return lay_out(tmp_path)


def test_a_dry_run_shows_what_why_and_where(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(kernel.root, without="")
    text = run(capsys, kernel, persist=True)
    assert snapshot(kernel.root, without="") == before
    block = text[text.index("swappiness:") : text.index("thp:")]
    for word in ("- 60", "+ 10", "why:", "effect:", "against:", "/proc/sys/vm/swappiness"):
        assert word in block
    assert "+++ /etc/sysctl.d/60-hearth.conf\n" in text
    assert "+vm.swappiness = 10\n" in text
    assert "nothing was changed" in text


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a rollback is for root")


@as_root
def test_applied_and_rolled_back_as_a_user_does_it(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(kernel.root)
    text = run(capsys, kernel, apply=True, persist=True)
    assert "done: swappiness" in text
    assert "hearth tune --rollback puts them back" in text
    again = run(capsys, kernel, apply=True, persist=True)
    assert "nothing to change" in again
    assert "/proc/sys/vm/swappiness: put back to 60" in run(capsys, kernel, rollback=True)
    assert snapshot(kernel.root) == before
    assert "nothing to put back" in run(capsys, kernel, rollback=True)


def test_the_result_as_json_says_what_became_of_each(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, kernel, apply=True, json=True, chosen=frozenset({"thp", "swappiness"}))
    answer = json.loads(text)
    assert answer["result"] == [
        {"name": "swappiness", "state": "done", "reason": ""},
        {"name": "thp", "state": "done", "reason": ""},
    ]


def test_a_file_of_somebody_else_is_reported_and_the_code_says_so(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    (kernel.root / SYSCTL_FILE).write_text("mine = 1\n")
    chosen = frozenset({"swappiness"})
    text = run(capsys, kernel, 1, apply=True, persist=True, chosen=chosen)
    assert "was not written by hearth" in text
    assert "done: swappiness" in text
    assert (kernel.root / SYSCTL_FILE).read_text() == "mine = 1\n"


def test_what_cannot_be_changed_here_is_said_and_the_code_says_so(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    class ReadOnly(FakeKernel):
        def is_writable(self, path: str) -> bool:
            return path.startswith("sys/")

    chosen = frozenset({"swappiness", "thp"})
    text = run(capsys, ReadOnly(kernel.root), 1, apply=True, chosen=chosen)
    assert "swappiness: 60, cannot be changed here (/proc/sys/vm/swappiness is read-only" in text
    assert "done: thp" in text


@as_root
def test_a_value_that_somebody_has_changed_gives_a_code_until_it_is_forced(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, kernel, apply=True, chosen=frozenset({"swappiness"}))
    kernel.write("value", "proc/sys/vm/swappiness", "33")
    assert "left alone" in run(capsys, kernel, 1, rollback=True)
    run(capsys, kernel, rollback=True, force=True)
    assert kernel.read("value", "proc/sys/vm/swappiness") == "60"


def test_what_is_measured_is_kept_or_undone_and_both_numbers_are_shown(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hearth.host.tune import benchmarks

    class Helps:
        name, unit, is_higher_better = "speed", "GB/s", True

        def run(self) -> float:
            return 2.0 if kernel.read("choice", THP) == "madvise" else 1.0

        def close(self) -> None: ...

    monkeypatch.setattr(benchmarks, "choose_benchmark", lambda view, item: Helps())
    chosen = frozenset({"thp", "swappiness"})
    text = run(capsys, kernel, measure=True, persist=True, chosen=chosen)
    assert "thp: speed: 1 → 2 GB/s (spread 0, 7 rounds): helps; kept" in text
    assert "swappiness: speed: 1 → 1 GB/s (spread 0, 7 rounds): no difference; undone" in text
    assert kernel.read("choice", THP) == "madvise"
    assert kernel.read("value", "proc/sys/vm/swappiness") == "60"
    assert (kernel.root / "etc/tmpfiles.d/60-hearth.conf").exists()
    assert not (kernel.root / SYSCTL_FILE).exists()


THP = "sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_is_ended_leaves_the_former_value(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from hearth.host.tune import benchmarks

    class Ended:
        name, unit, is_higher_better = "speed", "GB/s", True

        def run(self) -> float:
            if kernel.read("choice", THP) == "madvise":
                signal.raise_signal(number)
            return 1.0

        def close(self) -> None:
            signal.raise_signal(number)  # a second one does not come through

    monkeypatch.setattr(benchmarks, "choose_benchmark", lambda view, item: Ended())
    order = Order(frozenset({"thp"}), journal_of(kernel.root), measure=True)
    # Jobs in the background of a shell ignore SIGINT, which is honoured; not so here.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end:
            command._run(order, view_of(kernel))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number
    assert kernel.read("choice", THP) == "never"
    assert [entry.state for entry in read_entries(order.journal)] == ["undone"]


@pytest.mark.parametrize("asked", [{"apply": True}, {"measure": True}])
def test_without_root_nothing_is_changed_and_the_commands_are_shown(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, asked: dict[str, bool]
) -> None:
    before = snapshot(kernel.root, without="")
    order = Order(frozenset({"swappiness"}), journal_of(kernel.root), **asked)
    with pytest.raises(PrivilegeError) as caught:
        command._run(order, replace(view_of(kernel), euid=1000))
    assert "sudo sysctl -w vm.swappiness=10" in str(caught.value.hint)
    assert snapshot(kernel.root, without="") == before


def test_the_commands_do_what_hearth_would(kernel: FakeKernel, tmp_path: Path) -> None:
    """Run by a shell, in which sudo is nothing and the root is the tree."""
    plan = plan_of(kernel, ALL, persist=True)
    lines = report.commands(plan)
    script = "\n".join(['sudo() { "$@"; }', 'sysctl() { echo "$2"; }', *_in_tree(lines, tmp_path)])
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
    assert "net.core.somaxconn=65535\n" in done.stdout
    for file in plan.files:
        assert (tmp_path / file.path).read_text() == file.text


def _in_tree(lines: Sequence[str], root: Path) -> list[str]:
    return [re.sub(r"(tee|mkdir -p) /", rf"\1 {root}/", line) for line in lines]


def test_another_user_is_refused_by_the_real_command(tmp_path: Path) -> None:
    """Says 8, and names the commands; where there is nothing to change, 0."""
    code = "import os; os.geteuid = lambda: 1000; from hearth.cli.main import main; main()"
    words = ["tune", "--apply", "--only", "swappiness", "--journal", str(tmp_path / "j")]
    found = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    swappiness = int(Path("/proc/sys/vm/swappiness").read_text())
    if swappiness <= 10:
        assert found.returncode == 0, found.stderr
    else:
        assert found.returncode == 8, found.stderr
        assert "sudo sysctl -w vm.swappiness=10" in found.stderr
    assert int(Path("/proc/sys/vm/swappiness").read_text()) == swappiness
    assert list(tmp_path.iterdir()) == []
